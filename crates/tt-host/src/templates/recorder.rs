//! What the making of a template tells its record, and is told by it.

use super::{LOOK, TemplateMaker};
use crate::layers;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;
use tt_image::Progress;
use tt_model::template;
use tt_store::tables::TemplateRecord;

/// Wants all until the daemon ends.
pub(super) struct Stop<'a>(pub(super) &'a AtomicBool);

impl Progress for Stop<'_> {
    fn step(&self, _what: &str) {}

    fn is_wanted(&self) -> bool {
        !self.0.load(Ordering::Relaxed)
    }
}

/// Writes into a template's record how far its making is, at a bounded rate, and reads there whether it is wanted.
pub(super) struct Recorder<'a> {
    maker: &'a TemplateMaker,
    name: &'a str,
    /// Whether what is being done is what the record asks for.
    is_meant: &'a (dyn Fn(&TemplateRecord) -> bool + Sync),
    state: Mutex<Recorded>,
}

struct Recorded {
    looked: Instant,
    is_wanted: bool,
    progress: Option<template::Progress>,
    written: Option<template::Progress>,
}

impl<'a> Recorder<'a> {
    pub(super) fn new(
        maker: &'a TemplateMaker,
        name: &'a str,
        is_meant: &'a (dyn Fn(&TemplateRecord) -> bool + Sync),
    ) -> Self {
        let state =
            Recorded { looked: Instant::now(), is_wanted: true, progress: None, written: None };
        Self { maker, name, is_meant, state: Mutex::new(state) }
    }

    fn write(&self, change: impl Fn(&mut TemplateRecord)) {
        let change = |record: &mut TemplateRecord| {
            if (self.is_meant)(record) {
                change(record);
            }
        };
        if let Err(error) = self.maker.record(self.name, change) {
            tracing::warn!(error = layers::chain(&error), "step of a template not recorded");
        }
    }

    /// Once in [`LOOK`]: the record says whether it is wanted, and is told of what has changed.
    fn look(&self, state: &mut Recorded) {
        if state.looked.elapsed() < LOOK {
            return;
        }
        state.looked = Instant::now();
        match self.maker.tables.template(self.name) {
            Ok(row) => {
                let is_meant =
                    |record: &TemplateRecord| record.is_wanted && (self.is_meant)(record);
                state.is_wanted = row.is_some_and(|row| is_meant(&row.value));
            }
            Err(error) => tracing::warn!(error = layers::chain(&error), "template not looked at"),
        }
        if state.is_wanted && state.progress != state.written {
            let progress = state.progress;
            self.write(|record| record.progress = progress);
            state.written = progress;
        }
    }
}

impl Progress for Recorder<'_> {
    fn step(&self, what: &str) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        (state.progress, state.written) = (None, None);
        self.write(|record| {
            record.step = Some(what.to_owned());
            record.progress = None;
        });
    }

    fn bytes(&self, done: u64, total: Option<u64>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.progress = Some(template::Progress { done_bytes: done, total_bytes: total });
        self.look(&mut state);
    }

    /// Its thread is one of few, and makes other templates meanwhile.
    fn is_patient(&self) -> bool {
        false
    }

    fn is_wanted(&self) -> bool {
        if self.maker.is_stopping.load(Ordering::Relaxed) {
            return false;
        }
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        self.look(&mut state);
        state.is_wanted
    }
}
