//! Makes and removes the templates that the records ask for. It decides nothing about them: each kind of source is one
//! function of the catalogue.

mod recorder;

use crate::publish::Publisher;
use crate::{Drivers, HostError, Queue, layers, volumes};
use recorder::{Recorder, Stop};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;
use tt_image::{Catalogue, Facts, ImageError, Import, Packages};
use tt_model::status::Trouble;
use tt_model::template::{MEMO_BYTES_MAX, digest_digits};
use tt_model::{HostId, Push, Recipe, TemplateSource, VmTemplate};
use tt_store::tables::{Change, Committed, Row, Tables, TemplateRecord};

/// How often the record of a template that is being made is looked at and brought up to date.
const LOOK: Duration = Duration::from_millis(500);
/// Pause before a build that waits for another one on the same base.
const BUSY_PAUSE: Duration = Duration::from_secs(2);
/// Commits that are planned again because others came between.
const TRIES: u32 = 64;

/// Matches this host's templates to their records. Any number of threads may work on one queue.
#[derive(Debug)]
pub(crate) struct TemplateMaker {
    tables: Tables,
    catalogue: Arc<Catalogue>,
    drivers: Drivers,
    host: HostId,
    is_stopping: Arc<AtomicBool>,
}

impl TemplateMaker {
    pub(crate) fn new(
        tables: Tables,
        catalogue: Arc<Catalogue>,
        drivers: Drivers,
        host: HostId,
        is_stopping: Arc<AtomicBool>,
    ) -> Self {
        Self { tables, catalogue, drivers, host, is_stopping }
    }

    /// Works until the queue is closed.
    pub(crate) fn run(&self, queue: &Queue<String>) {
        while let Some(name) = queue.take() {
            match self.visit(&name) {
                Ok(None) => queue.done(&name, None),
                Ok(Some(delay)) => queue.wait(&name, delay),
                Err(error) => {
                    tracing::error!(template = name, error = layers::chain(&error), "not settled");
                    queue.failed(&name);
                }
            }
        }
    }

    /// Answers after which time it is to be looked at again.
    fn visit(&self, name: &str) -> Result<Option<Duration>, HostError> {
        let Some(row) = self.tables.template(name)? else { return Ok(None) };
        if row.value.host != self.host {
            return Ok(None);
        }
        if !row.value.is_wanted {
            return self.remove(&row).map(|()| None);
        }
        if let Some(template) = &row.value.template {
            let push = row.value.push.as_ref().filter(|push| push.is_wanted());
            return match push {
                Some(push) => self.push(template, push).map(|()| None),
                None => self.discard(name).map(|()| None),
            };
        }
        // One that failed waits until it is asked for again.
        if row.value.trouble.is_some() {
            return Ok(None);
        }
        tracing::info!(template = name, "being made");
        let made = match self.make(&row.value) {
            // Its removal is named in the queue again, its making goes on with the next daemon.
            Err(Halt::Image(ImageError::Unwanted)) => return Ok(None),
            Err(Halt::NotYet) => return Ok(Some(LOOK)),
            // Another one is built on the same base. Others are made meanwhile.
            Err(Halt::Image(ImageError::Busy { waited_secs: 0, .. })) => {
                return Ok(Some(BUSY_PAUSE));
            }
            Err(Halt::Records(error)) => return Err(error),
            Ok(template) => Ok(template),
            Err(Halt::Image(error)) => Err(trouble(&error)),
            Err(Halt::Trouble(trouble)) => Err(trouble),
        };
        self.settled(name, &made)?;
        Ok(None)
    }

    /// Brings a template into a registry, and records what became of it unless nobody wants to know any more.
    fn push(&self, template: &VmTemplate, push: &Push) -> Result<(), HostError> {
        let name = &template.name;
        tracing::info!(template = name, to = push.to.reference, "being pushed");
        let is_wanted = |record: &TemplateRecord| record.push.as_ref() == Some(push);
        let progress = Recorder::new(self, name, &is_wanted);
        let pushed = self.catalogue.push(template, &push.to, push.before.as_deref(), &progress);
        self.discard(name)?;
        if matches!(pushed, Err(ImageError::Unwanted)) {
            return Ok(());
        }
        self.record(name, |record| {
            if let Some(now) = record.push.as_mut().filter(|now| *now == push) {
                now.digest = pushed.as_ref().ok().cloned();
                now.trouble = pushed.as_ref().err().map(trouble);
                (record.step, record.progress) = (None, None);
            }
        })
    }

    /// Removes what is left of a template's making or pushing.
    fn discard(&self, name: &str) -> Result<(), HostError> {
        let discarded = self.catalogue.discard(name);
        discarded.map_err(|e| HostError::Look { what: "templates", source: Box::new(e) })
    }

    fn make(&self, record: &TemplateRecord) -> Result<VmTemplate, Halt> {
        let progress = Recorder::new(self, &record.name, &|_| true);
        let unknown = |problem: String| ImageError::Format { what: "its source".into(), problem };
        match &record.source {
            None => Err(unknown("it is not known what it was made from".into()).into()),
            Some(TemplateSource::Build { recipe }) => {
                Ok(self.catalogue.build(recipe, Packages::Kept, &progress)?)
            }
            Some(TemplateSource::Recipe { text, dir }) => {
                // The API has checked it already.
                let recipe = Recipe::parse(text).map_err(|e| unknown(e.to_string()))?;
                let recipe = Recipe { memo: record.memo.clone().or(recipe.memo.clone()), ..recipe };
                let packages = Packages::Kept;
                Ok(self.catalogue.build_recipe(&recipe, Path::new(dir), packages, &progress)?)
            }
            Some(source @ TemplateSource::Import { from, digest, format, features }) => {
                let import = Import {
                    from: from.clone(),
                    digest: digest.as_deref().and_then(digest_digits).map(str::to_owned),
                    format: *format,
                };
                let mut facts = facts(record, || format!("from {}", source.describe()));
                facts.inside.clone_from(features);
                let draft = self.catalogue.draft(&record.name, &progress)?;
                let made = self.catalogue.import(&draft, &import, &facts, &progress);
                Ok(self.keep_draft_for_retry(&record.name, made)?)
            }
            Some(TemplateSource::Pull(from)) => {
                // What is pulled says itself what it is.
                let facts = Facts { memo: record.memo.clone(), ..facts(record, String::new) };
                let draft = self.catalogue.draft(&record.name, &progress)?;
                let made = self.catalogue.pull(&draft, from, &facts, &progress);
                Ok(self.keep_draft_for_retry(&record.name, made)?)
            }
            Some(
                source @ (TemplateSource::Publish { .. } | TemplateSource::PublishImage { .. }),
            ) => {
                let facts = facts(record, || format!("published from {}", source.describe()));
                let made = self.publisher().publish(record, facts, &progress);
                if made.as_ref().is_err_and(|halt| !matches!(halt, Halt::NotYet)) {
                    // What was copied is of another moment than the next try's.
                    self.catalogue.discard(&record.name)?;
                }
                made
            }
        }
    }

    fn publisher(&self) -> Publisher<'_> {
        Publisher {
            tables: &self.tables,
            catalogue: &self.catalogue,
            storages: &self.drivers.storages,
        }
    }

    /// Records what became of it, in one moment with the end of what was taken for it.
    fn settled(&self, name: &str, made: &Result<VmTemplate, Trouble>) -> Result<(), HostError> {
        for _ in 0..TRIES {
            let Some(mut row) = self.tables.template(name)? else { return Ok(()) };
            let before = row.value.clone();
            end(&mut row.value, made);
            let change = self.publisher().give_back(&before, Change::new().template(&row)?)?;
            if let Committed::Done(_) = self.tables.commit(&change)? {
                return Ok(());
            }
        }
        Err(HostError::Contended { what: format!("template {name}"), tries: TRIES })
    }

    /// What a failure left is of use to a retry, or to nobody.
    fn keep_draft_for_retry(
        &self,
        name: &str,
        made: Result<VmTemplate, ImageError>,
    ) -> Result<VmTemplate, ImageError> {
        if made.as_ref().is_err_and(|error| !error.is_retryable()) {
            self.catalogue.discard(name)?;
        }
        made
    }

    fn remove(&self, row: &Row<TemplateRecord>) -> Result<(), HostError> {
        let name = &row.value.name;
        let stop = Stop(&self.is_stopping);
        let removed =
            self.catalogue.discard(name).and_then(|()| self.catalogue.remove(name, &stop));
        if matches!(removed, Err(ImageError::Unwanted)) {
            // The next daemon goes on with it.
            return Ok(());
        }
        removed.map_err(|e| HostError::Look { what: "templates", source: Box::new(e) })?;
        for _ in 0..TRIES {
            let change = Change::new().remove_template(row);
            let change = self.publisher().give_back(&row.value, change)?;
            if let Committed::Done(_) = self.tables.commit(&change)? {
                return volumes::collect(&self.tables, &self.drivers);
            }
            // Asked for again meanwhile: the watch has named it again.
            if self.tables.template(name)?.is_none_or(|now| now.revision != row.revision) {
                return Ok(());
            }
        }
        Err(HostError::Contended { what: format!("template {name}"), tries: TRIES })
    }

    fn record(&self, name: &str, change: impl Fn(&mut TemplateRecord)) -> Result<(), HostError> {
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

/// Why a template is not made, or not yet.
#[derive(Debug)]
pub(crate) enum Halt {
    /// The catalogue says why.
    Image(ImageError),
    /// The records could not be read.
    Records(HostError),
    /// Something else is wrong.
    Trouble(Trouble),
    /// What it is made from is not there yet.
    NotYet,
}

impl From<ImageError> for Halt {
    fn from(error: ImageError) -> Self {
        Self::Image(error)
    }
}

impl From<HostError> for Halt {
    fn from(error: HostError) -> Self {
        Self::Records(error)
    }
}

fn trouble(error: &ImageError) -> Trouble {
    Trouble { code: error.code(), why: layers::chain(error), retry: error.is_retryable() }
}

/// What a record says once the template is made, or can not be.
fn end(record: &mut TemplateRecord, made: &Result<VmTemplate, Trouble>) {
    (record.step, record.progress, record.origin) = (None, None, None);
    // A retry comes with a source of its own.
    record.source = record.source.take().map(TemplateSource::open);
    match made {
        Ok(template) => record.template = Some(template.clone()),
        Err(trouble) => record.trouble = Some(trouble.clone()),
    }
}

/// What a template is that brings no record of its own.
fn facts(record: &TemplateRecord, memo: impl Fn() -> String) -> Facts {
    Facts {
        name: record.name.clone(),
        memo: record.memo.clone().or_else(|| Some(line(memo()))),
        arch: std::env::consts::ARCH.to_owned(),
        inside: Vec::new(),
    }
}

/// As much as a description may be of what says where a template came from.
fn line(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(MEMO_BYTES_MAX));
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use tt_model::ErrorCode;

    fn record(from: &str) -> TemplateRecord {
        let source = TemplateSource::Import {
            from: from.into(),
            digest: None,
            format: None,
            features: Vec::new(),
        };
        TemplateRecord {
            name: "x".into(),
            source: Some(source),
            origin: None,
            memo: None,
            host: HostId(1),
            is_wanted: true,
            template: None,
            step: None,
            progress: None,
            trouble: None,
            push: None,
        }
    }

    fn memo(from: &str) -> String {
        let record = record(from);
        let said = record.source.as_ref().unwrap().describe();
        facts(&record, || format!("from {said}")).memo.unwrap()
    }

    #[test]
    fn what_is_recorded_for_long_holds_no_secret() {
        let trouble = Trouble { code: ErrorCode::Template, why: "no".into(), retry: true };
        for made in [Ok(VmTemplate::default()), Err(trouble)] {
            let mut record = record("https://a.org/x.img?sig=secret");
            end(&mut record, &made);
            let source = format!("{:?}", record.source.unwrap());
            assert!(source.contains("https://a.org/x.img") && !source.contains("secret"));
        }
    }

    #[test]
    fn a_description_that_nobody_gave_is_short_and_holds_no_secret() {
        assert_eq!(memo("https://a.org/x.img?sig=secret"), "from https://a.org/x.img");
        assert_eq!(memo("/d/what?.img"), "from /d/what?.img");
        let long = memo(&format!("/{}", "é".repeat(1000)));
        assert!(long.len() <= MEMO_BYTES_MAX && long.ends_with('é'), "{} bytes", long.len());
    }
}
