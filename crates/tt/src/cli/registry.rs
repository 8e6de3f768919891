//! Templates to and from registries: `tt template pull` and `push`, as far as they are not like other ways to a template. The
//! daemon asks the registry, never the command line.

use super::Context;
use super::error::CliError;
use super::template::{absolute, interruptible, later};
use tt_api::views::TemplateView;
use tt_model::{PushSpec, Reference, Refusal, Remote};

/// How a registry is asked.
#[derive(Clone, Debug, clap::Args)]
pub struct RegistryArgs {
    /// Ask without encryption; a registry on the daemon's own loopback always is
    #[arg(long)]
    plain_http: bool,
    /// A file of the daemon's host with credentials, as `docker login` writes it
    #[arg(long, value_name = "FILE")]
    credentials: Option<String>,
}

impl RegistryArgs {
    pub(super) fn remote(self, reference: String) -> Result<Remote, CliError> {
        let credentials = self.credentials.map(absolute).transpose()?;
        Ok(Remote { reference, plain_http: self.plain_http, credentials })
    }
}

/// The name of the template that a reference becomes where none is given.
pub(super) fn name_of(reference: &str) -> Result<String, CliError> {
    let wrong = |refusal: Refusal, remedy: String| CliError::Use {
        problem: format!("{}: {}", refusal.what, refusal.problem),
        remedy,
    };
    let parsed = Reference::parse(reference);
    let parsed = parsed.map_err(|refusal| wrong(refusal.clone(), refusal.remedy))?;
    parsed.template_name().map_err(|refusal| wrong(refusal, "say a NAME behind it".into()))
}

/// Pushes a template, or ends that.
pub(super) async fn push(
    context: &Context,
    template: String,
    reference: Option<String>,
    how: RegistryArgs,
    no_wait: bool,
) -> Result<(), CliError> {
    let Context { client, output } = context;
    let Some(reference) = reference else {
        let view = client.stop_push(&template).await?;
        output.result(&view, || format!("{} is not being pushed\n", view.name))?;
        return Ok(());
    };
    let spec = PushSpec { template, to: how.remote(reference)? };
    let mut view = client.push_template(&spec).await?;
    if !no_wait {
        view = interruptible(&view.name.clone(), pushed(context, view)).await?;
    }
    output.result(&view, || match view.push.as_ref().and_then(|push| push.digest.as_ref()) {
        Some(digest) => format!("{} pushed to {} {digest}\n", view.name, spec.to.reference),
        None => format!("{} is being pushed to {}\n", view.name, spec.to.reference),
    })?;
    Ok(())
}

async fn pushed(context: &Context, first: TemplateView) -> Result<TemplateView, CliError> {
    let mut view = first;
    let mut last_step = None;
    loop {
        let over = || CliError::Follow { what: format!("push of template {}", view.name) };
        let push = view.push.as_ref().ok_or_else(over)?;
        if push.digest.is_some() {
            return Ok(view);
        }
        if let Some(trouble) = push.trouble.clone() {
            return Err(CliError::Push { name: view.name, trouble });
        }
        view = later(context, view, &mut last_step).await?;
    }
}
