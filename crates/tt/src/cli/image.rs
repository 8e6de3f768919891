//! `tt image`: kept images, the disks that outlived their Vms.

use super::error::{CliError, Exit};
use super::patience::through_losses;
use super::text::{Table, format_ago};
use super::{Context, now_unix_secs};
use clap::Subcommand;
use std::time::Duration;
use tt_model::units::format_size_mb;
use tt_model::{KeptImage, VmId};

/// How often an image that is being removed is looked at: images have no events.
const LOOK_INTERVAL: Duration = Duration::from_millis(300);

/// `tt image ..`.
#[derive(Debug, Subcommand)]
pub enum ImageCommand {
    /// List all kept images
    Ls,
    /// Remove a kept image that no Vm and no other image lies on
    Rm {
        /// Which image: its number in the list
        #[arg(value_name = "ID")]
        id: VmId,
        /// Return at once
        #[arg(long)]
        no_wait: bool,
    },
}

/// Runs `tt image ..`.
///
/// # Errors
/// What the daemon refused, or why it could not be asked.
pub async fn run(context: &Context, command: ImageCommand) -> Result<Exit, CliError> {
    let Context { client, output } = context;
    match command {
        ImageCommand::Ls => {
            let list = client.images().await?;
            output.result(&list, || image_list(&list.images, now_unix_secs()))?;
        }
        ImageCommand::Rm { id, no_wait } => {
            let ask = async || client.remove_image(id).await;
            let image = through_losses(*output, ask).await?;
            if !no_wait {
                removed(context, id).await?;
            }
            let done = if no_wait { "is being removed" } else { "removed" };
            output.result(&image, || format!("image {id} {done}\n"))?;
        }
    }
    Ok(Exit::DONE)
}

/// Waits until an image is gone, unless the user stops waiting.
async fn removed(context: &Context, id: VmId) -> Result<(), CliError> {
    let gone = async {
        while context.client.images().await?.images.iter().any(|image| image.id == id) {
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
        Ok(())
    };
    tokio::select! {
        done = gone => done,
        interrupted = tokio::signal::ctrl_c() => match interrupted {
            Ok(()) => Err(CliError::Interrupt { look: "tt image ls".into() }),
            Err(source) => Err(CliError::System { action: "watch for Ctrl-C", source }),
        },
    }
}

fn image_list(images: &[KeptImage], now: u64) -> String {
    let mut table = Table::with_header(&["ID", "OF", "TEMPLATE", "DISK", "STORAGE", "KEPT"]);
    for image in images {
        let kept = format_ago(image.kept_timestamp, now);
        table.row([
            image.id.to_string(),
            image.name.clone(),
            image.template.name.clone(),
            format_size_mb(image.disk_size.into()),
            image.storage.name().to_owned(),
            if image.is_wanted { kept } else { "being removed".to_owned() },
        ]);
    }
    table.render()
}
