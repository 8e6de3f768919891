//! `tt template`: what Vms are made from.

use super::error::{CliError, Exit};
use super::registry::{self, RegistryArgs};
use super::target::VmTarget;
use super::text::{Table, one_line};
use super::{Context, lines, template_export};
use clap::Subcommand;
use serde_json::json;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;
use tt_api::ClientError;
use tt_api::views::{TemplatePhase, TemplateView};
use tt_model::check::quoted;
use tt_model::recipe::RECIPE_BYTES_MAX;
use tt_model::template::{DiskFormat, FEATURES_SAID};
use tt_model::units::format_size_mb;
use tt_model::{ErrorCode, Recipe, Refusal, TemplateSource, TemplateSpec};

/// How often a template that is being made or removed is looked at: templates have no events.
const LOOK_INTERVAL: Duration = Duration::from_millis(300);

/// `tt template ..`.
#[derive(Debug, Subcommand)]
pub enum TemplateCommand {
    /// List all templates
    Ls,
    /// Show a template
    Show {
        /// Which template
        template: String,
    },
    /// Make a template by a recipe, and wait until Vms can be made from it
    Build {
        /// How it is made: `micro` is a kernel with TT's agent and BusyBox, `debian-12` a full Debian with systemd; a file
        /// of yours has more (docs/recipes.md)
        #[arg(value_name = "RECIPE|FILE.toml")]
        recipe: String,
        /// Return at once
        #[arg(long)]
        no_wait: bool,
    },
    /// Make a template of a disk or a root file system: qcow2, vmdk, vdi, raw, tar, each also in gzip, xz or zstd
    Import {
        /// Its globally unique name, e.g. `example.org/me/alpine`
        name: String,
        /// A file of the daemon's host, or an http or https URL
        #[arg(value_name = "FILE|URL")]
        from: String,
        /// What the file's SHA-256 must be: `sha256:` and 64 hexadecimal digits
        #[arg(long)]
        digest: Option<String>,
        /// What it is, where its content does not say so
        #[arg(long, value_parser = disk_format)]
        format: Option<DiskFormat>,
        /// What a disk that boots by itself has: its guest runs cloud-init, it is booted by UEFI; may be repeated
        #[arg(long = "feature", value_name = "FEATURE", value_parser = FEATURES_SAID)]
        features: Vec<String>,
        /// Description for people
        #[arg(long)]
        memo: Option<String>,
        /// Return at once
        #[arg(long)]
        no_wait: bool,
    },
    /// Make a template of a Vm's disk as it is now or was in a snapshot, or of a kept image
    Publish {
        /// What: a Vm, a snapshot of it, or a kept image by its number
        #[arg(value_name = "ENV/VM[@SNAPSHOT]|image:ID")]
        from: Published,
        /// Its globally unique name, e.g. `example.org/me/shop`
        name: String,
        /// Description for people
        #[arg(long)]
        memo: Option<String>,
        /// Return at once
        #[arg(long)]
        no_wait: bool,
    },
    /// Write a template's disk into a file here
    Export {
        /// Which template
        template: String,
        /// The file; it is there once all of it has arrived
        file: PathBuf,
        /// How: `raw` or `qcow2`; without it as the file's name ends
        #[arg(long, value_parser = export_format)]
        format: Option<DiskFormat>,
        /// Replace the file if there is one
        #[arg(long)]
        force: bool,
    },
    /// Make a template of a container image in a registry, or of a template that was pushed there
    Pull {
        /// What: `[HOST[:PORT]/]NAME[:TAG][@DIGEST]`; without a host, Docker's hub
        reference: String,
        /// Its globally unique name; without one, host and repository, e.g. `docker.io/library/alpine`
        name: Option<String>,
        /// Description for people
        #[arg(long)]
        memo: Option<String>,
        #[command(flatten)]
        how: RegistryArgs,
        /// Return at once
        #[arg(long)]
        no_wait: bool,
    },
    /// Push a template to a registry, from where it can be pulled
    Push {
        /// Which template
        template: String,
        /// Where to: `HOST[:PORT]/NAME[:TAG]`
        #[arg(required_unless_present = "stop")]
        reference: Option<String>,
        #[command(flatten)]
        how: RegistryArgs,
        /// End a push that is under way
        #[arg(long, conflicts_with_all = ["reference", "plain_http", "credentials", "no_wait"])]
        stop: bool,
        /// Return at once
        #[arg(long)]
        no_wait: bool,
    },
    /// Remove a template that no Vm was made from
    Rm {
        /// Which template
        template: String,
        /// Return at once
        #[arg(long)]
        no_wait: bool,
    },
}

/// What is published.
#[derive(Clone, Debug)]
pub struct Published(TemplateSource);

impl FromStr for Published {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Some(id) = text.strip_prefix("image:") {
            let image =
                id.parse().map_err(|_| format!("{} is no number of an image", quoted(id)))?;
            return Ok(Self(TemplateSource::PublishImage { image }));
        }
        let (vm, snapshot) = match text.split_once('@') {
            Some((vm, snapshot)) => (vm, Some(snapshot.to_owned())),
            None => (text, None),
        };
        let vm = vm.parse::<VmTarget>()?.to_string();
        Ok(Self(TemplateSource::Publish { vm, snapshot }))
    }
}

/// Runs `tt template ..`.
///
/// # Errors
/// What the daemon refused, or why it could not be asked.
pub async fn run(context: &Context, command: TemplateCommand) -> Result<Exit, CliError> {
    let Context { client, output } = context;
    match command {
        TemplateCommand::Ls => {
            let list = client.templates().await?;
            output.result(&list, || template_list(&list.templates))?;
        }
        TemplateCommand::Show { template } => {
            let view = client.template(&template).await?;
            output.result(&view, || facts(&view))?;
        }
        TemplateCommand::Build { recipe, no_wait } => {
            make(context, &by_recipe(recipe)?, no_wait).await?;
        }
        TemplateCommand::Import { name, from, digest, format, features, memo, no_wait } => {
            let source = TemplateSource::Import { from: absolute(from)?, digest, format, features };
            make(context, &TemplateSpec { name, source, memo }, no_wait).await?;
        }
        TemplateCommand::Publish { from, name, memo, no_wait } => {
            make(context, &TemplateSpec { name, source: from.0, memo }, no_wait).await?;
        }
        TemplateCommand::Export { template, file, format, force } => {
            let format = format.unwrap_or_else(|| template_export::format_of(&file));
            let size = template_export::export(context, &template, &file, format, force).await?;
            let shown = file.display().to_string();
            let done =
                json!({ "template": template, "file": shown, "format": format, "bytes": size });
            output.result(&done, || format!("{shown} has the disk of {template}\n"))?;
        }
        TemplateCommand::Pull { reference, name, memo, how, no_wait } => {
            let name = match name {
                Some(name) => name,
                None => registry::name_of(&reference)?,
            };
            let source = TemplateSource::Pull(how.remote(reference)?);
            make(context, &TemplateSpec { name, source, memo }, no_wait).await?;
        }
        TemplateCommand::Push { template, reference, how, stop, no_wait } => {
            registry::push(context, template, reference.filter(|_| !stop), how, no_wait).await?;
        }
        TemplateCommand::Rm { template, no_wait } => {
            let view = client.remove_template(&template).await?;
            if !no_wait {
                interruptible(&view.name, removed(context, &view.name)).await?;
            }
            let done = if no_wait { "is being removed" } else { "removed" };
            output.result(&view, || format!("{} {done}\n", view.name))?;
        }
    }
    Ok(Exit::DONE)
}

/// Asks for a template and, unless told otherwise, waits for it.
async fn make(context: &Context, spec: &TemplateSpec, no_wait: bool) -> Result<(), CliError> {
    let mut view = context.client.make_template(spec).await?;
    if !no_wait {
        view = interruptible(&view.name.clone(), built(context, view)).await?;
    }
    context.output.result(&view, || template_list(std::slice::from_ref(&view)))?;
    Ok(())
}

/// What a recipe makes: one that is built in, or one in a file here.
fn by_recipe(recipe: String) -> Result<TemplateSpec, CliError> {
    if !recipe.contains('/') && !recipe.ends_with(".toml") {
        let source = TemplateSource::Build { recipe: recipe.clone() };
        return Ok(TemplateSpec { name: recipe, source, memo: None });
    }
    let path = absolute(recipe)?;
    let failed = |source| CliError::System { action: "read the recipe", source };
    let mut text = String::new();
    // One byte more than it may have: what is too large is then seen, and refused.
    let file = File::open(&path).map_err(failed)?;
    file.take(RECIPE_BYTES_MAX as u64 + 1).read_to_string(&mut text).map_err(failed)?;
    let refused = |refusal: Refusal| CliError::Use {
        problem: format!("{}: {}", refusal.what, refusal.problem),
        remedy: refusal.remedy,
    };
    let name = Recipe::parse(&text).map_err(refused)?.name;
    let dir = Path::new(&path).parent().unwrap_or(Path::new("/")).to_string_lossy().into_owned();
    Ok(TemplateSpec { name, source: TemplateSource::Recipe { text, dir }, memo: None })
}

/// A path as seen from here, since the daemon is elsewhere. A URL stays as it is.
pub(super) fn absolute(from: String) -> Result<String, CliError> {
    if from.contains("://") {
        return Ok(from);
    }
    let failed = |source| CliError::System { action: "find the file", source };
    let path = std::path::absolute(&from).map_err(failed)?;
    path.into_os_string().into_string().map_err(|_| failed(std::io::ErrorKind::InvalidInput.into()))
}

fn disk_format(text: &str) -> Result<DiskFormat, String> {
    let all = [DiskFormat::Raw, DiskFormat::Qcow2, DiskFormat::Vmdk, DiskFormat::Vdi];
    let known = || all.map(DiskFormat::name).join(", ");
    let found = all.into_iter().find(|format| format.name() == text);
    found.ok_or_else(|| format!("write one of {}", known()))
}

fn export_format(text: &str) -> Result<DiskFormat, String> {
    let format = disk_format(text).ok();
    let format = format.filter(|format| matches!(format, DiskFormat::Raw | DiskFormat::Qcow2));
    format.ok_or_else(|| "write raw or qcow2".to_owned())
}

/// Waits for `work` unless the user stops waiting.
pub(super) async fn interruptible<T>(
    name: &str,
    work: impl Future<Output = Result<T, CliError>>,
) -> Result<T, CliError> {
    tokio::select! {
        done = work => done,
        interrupted = tokio::signal::ctrl_c() => match interrupted {
            Ok(()) => Err(CliError::Interrupt { look: format!("tt template show {name}") }),
            Err(source) => Err(CliError::System { action: "watch for Ctrl-C", source }),
        },
    }
}

async fn built(context: &Context, first: TemplateView) -> Result<TemplateView, CliError> {
    let mut view = first;
    let mut last_step = None;
    loop {
        match (view.phase, view.trouble.clone()) {
            (TemplatePhase::Ready, _) => return Ok(view),
            (TemplatePhase::Failed, Some(trouble)) => {
                return Err(CliError::Build { name: view.name, trouble });
            }
            (TemplatePhase::Removing, _) => {
                return Err(CliError::Follow { what: format!("template {}", view.name) });
            }
            (TemplatePhase::Building | TemplatePhase::Failed, _) => {}
        }
        view = later(context, view, &mut last_step).await?;
    }
}

/// Says what is being done, if that is new, and looks again after a moment.
pub(super) async fn later(
    context: &Context,
    view: TemplateView,
    last_step: &mut Option<String>,
) -> Result<TemplateView, CliError> {
    let step = step(&view);
    if Some(&step) != last_step.as_ref() {
        context.output.note(&format!("{} {}", view.name, one_line(&step)));
        *last_step = Some(step);
    }
    tokio::time::sleep(LOOK_INTERVAL).await;
    Ok(context.client.template(&view.name).await?)
}

/// What is being done, with every tenth part of it, where that is known.
fn step(view: &TemplateView) -> String {
    let step = view.step.as_deref().unwrap_or("waiting");
    let done = view.progress.and_then(|progress| {
        let total = progress.total_bytes.filter(|total| *total > 0)?;
        let tenths = u128::from(progress.done_bytes) * 10 / u128::from(total);
        Some(format!("{step}: {} % of {}", tenths * 10, format_size_mb(total.div_ceil(1 << 20))))
    });
    done.unwrap_or_else(|| step.to_owned())
}

async fn removed(context: &Context, name: &str) -> Result<(), CliError> {
    loop {
        match context.client.template(name).await {
            Err(ClientError::Problem(problem)) if problem.code == ErrorCode::NotFound => {
                return Ok(());
            }
            Err(error) => return Err(error.into()),
            Ok(view) => match view.trouble {
                Some(trouble) if !trouble.retry => {
                    return Err(CliError::Build { name: name.to_owned(), trouble });
                }
                _ => tokio::time::sleep(LOOK_INTERVAL).await,
            },
        }
    }
}

fn template_list(templates: &[TemplateView]) -> String {
    let mut table = Table::with_header(&["NAME", "PHASE", "DISK", "ENGINES", "DESCRIPTION"]);
    for view in templates {
        let made = view.template.as_ref();
        table.row([
            view.name.clone(),
            view.phase.name().into(),
            made.map(|made| format_size_mb(made.disk_size.into())).unwrap_or_default(),
            made.map(|made| made.compatible_engines.join(",")).unwrap_or_default(),
            made.and_then(|made| made.memo.clone()).unwrap_or_default(),
        ]);
    }
    table.render()
}

fn facts(view: &TemplateView) -> String {
    let mut facts = Table::default();
    facts.row(["name", &view.name]);
    facts.row(["phase", view.phase.name()]);
    if let Some(source) = &view.source {
        facts.row(["made from", &source.describe()]);
    }
    if view.step.is_some() {
        facts.row(["step", &step(view)]);
    }
    if let Some(made) = &view.template {
        facts.row(["description", made.memo.as_deref().unwrap_or_default()]);
        facts.row(["disk", &format_size_mb(made.disk_size.into())]);
        facts.row(["processor", &made.arch]);
        facts.row(["engines", &made.compatible_engines.join(", ")]);
        facts.row(["features", &made.features.join(", ")]);
        facts.row(["digest", &made.digest]);
    }
    if let Some(push) = &view.push {
        facts.row(["pushed to", &push.to.reference]);
        facts.row(["as", push.digest.as_deref().unwrap_or_default()]);
    }
    let failed = view.push.as_ref().and_then(|push| push.trouble.as_ref());
    if let Some(trouble) = view.trouble.as_ref().or(failed) {
        facts.row(["trouble", &lines::trouble(trouble)]);
    }
    facts.render()
}
