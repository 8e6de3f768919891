//! The fake against the suite, and its faults.

use super::*;
use crate::conformance::{self, sample_vm};
use std::sync::atomic::AtomicUsize;
use tt_model::fault::no_fault;

#[test]
fn keeps_the_contract() {
    let net = FakeNetwork::new(Arc::default(), no_fault());
    conformance::run(&net, &sample_vm);
    assert_eq!(net.world(), FakeWorld::default());
}

/// Dies or fails at every side effect of a life, before and after it; the next attempt always
/// gets to the same end.
#[test]
fn every_fault_is_healed_by_asking_again() {
    let vm = sample_vm(EnvId(1), 0);
    for fault in [Fault::Fail, Fault::Die] {
        for at in 0.. {
            let asked = Arc::new(AtomicUsize::new(0));
            let count = Arc::clone(&asked);
            let hook: FaultHook = Arc::new(move |_, _| {
                if count.fetch_add(1, Ordering::SeqCst) == at { fault } else { Fault::None }
            });
            let net = FakeNetwork::new(Arc::default(), hook);
            let again = |act: &dyn Fn() -> Result<(), NetworkError>| {
                if act().is_err() {
                    net.revive();
                    act().unwrap();
                }
            };
            again(&|| net.init());
            again(&|| net.set_net(&vm));
            let set = net.world();
            assert_eq!((set.ports.len(), set.routes.len()), (2, 1));
            again(&|| net.unset_net(&vm));
            again(&|| net.close());
            assert_eq!(net.world(), FakeWorld::default());
            if asked.load(Ordering::SeqCst) <= at {
                assert!(at >= 16, "only {at} faults were possible");
                break;
            }
        }
    }
}

#[test]
fn the_dead_do_nothing() {
    let hook: FaultHook = Arc::new(|moment, effect| match (moment, effect) {
        (Moment::After, "net.tap") => Fault::Die,
        _ => Fault::None,
    });
    let net = FakeNetwork::new(Arc::default(), hook);
    net.init().unwrap();
    let vm = sample_vm(EnvId(1), 0);
    assert!(matches!(net.set_net(&vm), Err(NetworkError::Died)));
    let world = net.world();
    assert!(matches!(net.unset_net(&vm), Err(NetworkError::Died)));
    assert!(matches!(net.found(), Err(NetworkError::Died)));
    assert_eq!(net.world(), world);
}
