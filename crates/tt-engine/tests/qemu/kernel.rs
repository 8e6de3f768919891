//! A real kernel, where one is given: how long the parts of a start take.

use crate::rig::{Rig, remove};
use crate::sample;
use std::fs;
use std::io::Read;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tt_engine::VmEngine;
use tt_engine::conformance::Fixture;
use tt_model::Vm;

/// Environment variable: a directory with `kernel` and `initramfs`, whose guest says `INIT-UP` on its console.
const TEMPLATE: &str = "TT_TEST_TEMPLATE";

#[test]
fn a_kernel_boots() {
    let Ok(template) = std::env::var(TEMPLATE) else {
        println!("SKIPPED a_kernel_boots: {TEMPLATE} names no template");
        return;
    };
    let rig = Rig::new();
    for name in ["kernel", "initramfs"] {
        let to = rig.layout.template(&sample::vm(1)).join(name);
        fs::copy(Path::new(&template).join(name), to).unwrap();
    }
    let engine = rig.engine();
    let began = Instant::now();
    let facts = engine.init(Arc::new(|_| {}));
    println!("init {:?}: {facts:?}", began.elapsed());
    let mut vm = rig.vm();
    vm.machine.mem_size = 192;
    let began = Instant::now();
    engine.start_vm(&vm).unwrap();
    println!("start_vm returns after {:?}", began.elapsed());
    let mut console = UnixStream::connect(rig.layout.console_socket(vm.id)).unwrap();
    console.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let (mut heard, mut byte) = (Vec::new(), [0]);
    while !heard.ends_with(b"INIT-UP") {
        assert!(console.read(&mut byte).unwrap() > 0, "{}", String::from_utf8_lossy(&heard));
        heard.extend(byte);
    }
    println!("init in the guest after {:?}", began.elapsed());
    println!("peak memory beside the guest's: {:?}", peak(&rig, &vm));
    remove(&engine, &vm);
}

fn peak(rig: &Rig, vm: &Vm) -> Option<String> {
    let files = ["memory.max_usage_in_bytes", "memory.peak", "memory.stat"];
    let texts = rig.cgroups(vm.id).into_iter().flat_map(|dir| files.map(|f| dir.join(f)));
    Some(texts.filter_map(|f| fs::read_to_string(f).ok()).collect::<Vec<_>>().join("\n"))
}
