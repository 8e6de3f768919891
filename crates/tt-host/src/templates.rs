//! Makes and removes the templates that the records ask for, one at a time.

use crate::{HostError, Queue, layers};
use std::sync::Arc;
use std::time::Duration;
use tt_image::{Catalogue, MICRO, Packages};
use tt_model::status::Trouble;
use tt_model::{ErrorCode, HostId, TemplateSource, VmTemplate};
use tt_store::tables::{Change, Committed, Row, Tables, TemplateRecord};

/// Matches this host's templates to their records.
#[derive(Debug)]
pub(crate) struct TemplateMaker {
    tables: Tables,
    catalogue: Arc<Catalogue>,
    host: HostId,
}

impl TemplateMaker {
    pub(crate) fn new(tables: Tables, catalogue: Arc<Catalogue>, host: HostId) -> Self {
        Self { tables, catalogue, host }
    }

    /// Works until the queue is closed.
    pub(crate) fn run(&self, queue: &Queue<String>) {
        while let Some(name) = queue.take() {
            match self.visit(&name) {
                Ok(()) => queue.done(&name, None),
                Err(error) => {
                    tracing::error!(template = name, error = layers::chain(&error), "not settled");
                    queue.failed(&name);
                }
            }
        }
    }

    fn visit(&self, name: &str) -> Result<(), HostError> {
        let Some(row) = self.tables.template(name)? else { return Ok(()) };
        if row.value.host != self.host {
            return Ok(());
        }
        if !row.value.is_wanted {
            return self.remove(&row);
        }
        // One that failed waits until it is asked for again.
        if row.value.template.is_some() || row.value.trouble.is_some() {
            return Ok(());
        }
        tracing::info!(template = name, "building");
        let made = self.make(&row.value);
        self.record(name, |record| {
            record.step = None;
            match &made {
                Ok(template) => record.template = Some(template.clone()),
                Err(trouble) => record.trouble = Some(trouble.clone()),
            }
        })
    }

    fn make(&self, record: &TemplateRecord) -> Result<VmTemplate, Trouble> {
        let progress = |step: &str| {
            let told = self.record(&record.name, |record| record.step = Some(step.to_owned()));
            if let Err(error) = told {
                tracing::warn!(error = layers::chain(&error), "build step not recorded");
            }
        };
        let refused = |why: String| Trouble { code: ErrorCode::Unsupported, why, retry: false };
        let made = match &record.source {
            None => return Err(refused("it is not known what it was made from".into())),
            Some(TemplateSource::Build { recipe }) if recipe == MICRO => {
                self.catalogue.build_micro(Packages::Kept, &progress)
            }
            Some(TemplateSource::Build { recipe }) => {
                return Err(refused(format!("there is no recipe {recipe:?}; there is: {MICRO}")));
            }
        };
        made.map_err(|error| Trouble {
            code: ErrorCode::Template,
            why: layers::chain(&error),
            retry: false,
        })
    }

    fn remove(&self, row: &Row<TemplateRecord>) -> Result<(), HostError> {
        let removed = self.catalogue.remove(&row.value.name);
        removed.map_err(|e| HostError::Look { what: "templates", source: Box::new(e) })?;
        // Asked for again meanwhile: the watch has named it again.
        self.tables.commit(&Change::new().remove_template(row))?;
        Ok(())
    }

    fn record(&self, name: &str, change: impl Fn(&mut TemplateRecord)) -> Result<(), HostError> {
        const TRIES: u32 = 16;
        for _ in 0..TRIES {
            let Some(mut row) = self.tables.template(name)? else { return Ok(()) };
            change(&mut row.value);
            if let Committed::Done(_) = self.tables.commit(&Change::new().template(&row)?)? {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Err(HostError::Contended { what: format!("template {name}"), tries: TRIES })
    }
}
