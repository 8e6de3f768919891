//! A fake machine that is held still. What a dead daemon leaves is left here, too.

use super::{Faults, effect};
use crate::{EngineError, Hold, Machine};
use tt_model::{Vm, VmId};

/// See [`Hold`].
pub(super) struct FakeHold {
    pub faults: Faults,
    pub id: VmId,
    /// Where its memory is to lie.
    pub memory: Option<String>,
    /// What there is to hold.
    pub held: Held,
}

/// What there is to hold, and how far it is.
#[derive(Debug)]
pub(super) enum Held {
    /// No process; the path of the memory that one would begin from.
    Memory(Option<String>),
    /// The process, which goes on if it ran before.
    Machine { ran: bool, step: Step },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Prepared,
    Paused,
    Released { content: u64 },
}

impl FakeHold {
    fn go_on(&self) {
        if let Held::Machine { ran: true, .. } = self.held {
            self.faults.world.change(self.id, |fake| {
                if fake.seen == Machine::Paused {
                    fake.seen = Machine::Running;
                }
            });
        }
    }

    /// Whether there is a machine; an error if it does not stand still as `call` needs it.
    fn stands(&self, call: &'static str) -> Result<bool, EngineError> {
        self.faults.alive()?;
        match self.held {
            Held::Memory(_) => Ok(false),
            Held::Machine { step: Step::Paused, .. } => Ok(true),
            Held::Machine { .. } => Err(EngineError::Order { call }),
        }
    }

    fn drop_memory(&self) {
        if let Some(path) = &self.memory {
            let mut state = self.faults.world.lock();
            state.partial.remove(path);
            state.memories.remove(path);
        }
    }
}

impl Hold for FakeHold {
    fn pause(&mut self) -> Result<(), EngineError> {
        self.faults.alive()?;
        let Held::Machine { step, .. } = &mut self.held else { return Ok(()) };
        let id = self.id;
        self.faults.act(effect::HOLD, |world| {
            world.change(id, |fake| {
                if fake.seen == Machine::Running {
                    fake.seen = Machine::Paused;
                }
            });
        })?;
        *step = Step::Paused;
        Ok(())
    }

    fn switch_disk(&mut self, vm: &Vm) -> Result<(), EngineError> {
        if !self.stands("switch_disk")?
            || self.faults.world.image(vm.id) == Some(vm.runtime_image.clone())
        {
            return Ok(());
        }
        self.faults.act(effect::SWITCH, |world| {
            world.change(vm.id, |fake| fake.layers.insert(0, vm.runtime_image.clone()));
        })
    }

    fn release(&mut self) -> Result<(), EngineError> {
        if !self.stands("release")? {
            return Ok(());
        }
        let content = self.faults.world.with(self.id, |fake| fake.content).unwrap_or(0);
        self.faults.act(effect::RELEASE, |_| self.go_on())?;
        if let Held::Machine { step, .. } = &mut self.held {
            *step = Step::Released { content };
        }
        Ok(())
    }

    fn finish(mut self: Box<Self>) -> Result<bool, EngineError> {
        self.faults.alive()?;
        let Some(path) = self.memory.clone() else { return Ok(false) };
        match &self.held {
            Held::Memory(None) => return Ok(false),
            Held::Memory(Some(source)) => self.faults.act(effect::CAPTURE, |world| {
                let mut state = world.lock();
                if let Some(memory) = state.memories.get(source).copied() {
                    state.memories.insert(path, memory);
                }
            })?,
            Held::Machine { step: Step::Released { content }, .. } => {
                let (id, content) = (self.id, *content);
                self.faults.act(effect::CAPTURE, |world| world.capture(id, &path, content))?;
            }
            Held::Machine { .. } => return Err(EngineError::Order { call: "finish" }),
        }
        self.memory = None;
        Ok(true)
    }
}

impl Drop for FakeHold {
    fn drop(&mut self) {
        if self.faults.alive().is_err() {
            return;
        }
        self.drop_memory();
        if !matches!(self.held, Held::Machine { step: Step::Released { .. }, .. }) {
            self.go_on();
        }
    }
}
