//! The hold of a Vm without a process: its memory, if it has some, is what it would begin from next.

use crate::memory::files::{Draft, Memory};
use crate::{EngineError, Hold};
use tt_model::{Layout, Vm};

/// See [`VmEngine::prepare_hold`](crate::VmEngine::prepare_hold), of a Vm that has no machine.
pub(crate) fn hold(
    layout: &Layout,
    vm: &Vm,
    path: Option<&str>,
) -> Result<Box<dyn Hold>, EngineError> {
    let memory = match path {
        Some(_) => Memory::of(layout, vm)?,
        None => None,
    };
    let draft = match (&memory, path) {
        (Some(_), Some(path)) => Some(Draft::begin(layout, vm.id, path)?),
        _ => None,
    };
    Ok(Box::new(Absent { link: memory.zip(draft) }))
}

/// A Vm without a process; its memory, if there is some.
#[derive(Debug)]
struct Absent {
    link: Option<(Memory, Draft)>,
}

impl Hold for Absent {
    fn pause(&mut self) -> Result<(), EngineError> {
        Ok(())
    }

    fn switch_disk(&mut self, _: &Vm) -> Result<(), EngineError> {
        Ok(())
    }

    fn release(&mut self) -> Result<(), EngineError> {
        Ok(())
    }

    fn finish(mut self: Box<Self>) -> Result<bool, EngineError> {
        match self.link.take() {
            Some((memory, draft)) => draft.publish_link(&memory).map(|()| true),
            None => Ok(false),
        }
    }
}
