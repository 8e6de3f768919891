//! `tt template`: what Vms are made from.

use super::error::{CliError, Exit};
use super::text::{Table, one_line};
use super::{Context, lines};
use clap::Subcommand;
use std::time::Duration;
use tt_api::ClientError;
use tt_api::views::{TemplatePhase, TemplateView};
use tt_model::units::format_size_mb;
use tt_model::{ErrorCode, TemplateSource, TemplateSpec};

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
    /// Make a built-in template, and wait until Vms can be made from it
    Build {
        /// How it is made; `micro` is a kernel with TT's agent and nothing else
        recipe: String,
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
            let source = TemplateSource::Build { recipe: recipe.clone() };
            let mut view =
                client.make_template(&TemplateSpec { name: recipe, source, memo: None }).await?;
            if !no_wait {
                view = interruptible(&view.name.clone(), built(context, view)).await?;
            }
            output.result(&view, || template_list(std::slice::from_ref(&view)))?;
        }
        TemplateCommand::Rm { template, no_wait } => {
            let view = client.remove_template(&template).await?;
            if !no_wait {
                interruptible(&template, removed(context, &template)).await?;
            }
            let done = if no_wait { "is being removed" } else { "removed" };
            output.result(&view, || format!("{template} {done}\n"))?;
        }
    }
    Ok(Exit::DONE)
}

/// Waits for `work` unless the user stops waiting.
async fn interruptible<T>(
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
        if view.step != last_step {
            let step = view.step.as_deref().unwrap_or("waiting");
            context.output.note(&format!("{} {}", view.name, one_line(step)));
            last_step.clone_from(&view.step);
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
        view = context.client.template(&view.name).await?;
    }
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
    if let Some(step) = &view.step {
        facts.row(["step", step]);
    }
    if let Some(made) = &view.template {
        facts.row(["description", made.memo.as_deref().unwrap_or_default()]);
        facts.row(["disk", &format_size_mb(made.disk_size.into())]);
        facts.row(["processor", &made.arch]);
        facts.row(["engines", &made.compatible_engines.join(", ")]);
        facts.row(["features", &made.features.join(", ")]);
        facts.row(["digest", &made.digest]);
    }
    if let Some(trouble) = &view.trouble {
        facts.row(["trouble", &lines::trouble(trouble)]);
    }
    facts.render()
}
