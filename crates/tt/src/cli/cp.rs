//! `tt cp`: copies a file or a directory between this machine and a guest, as an archive over a stream. The guest is not
//! trusted: what it sends is written beneath the target only, and no more of it than its disk and memory can hold.

use super::Context;
use super::error::{CliError, Exit};
use super::target::{CopyEnd, VmTarget};
use clap::Args;
use std::path::Path;
use tokio::sync::mpsc;
use tokio::task::block_in_place;
use tt_api::client::{Stream, StreamReceiver, StreamSender};
use tt_guest::session::{FromGuest, Open, ToGuest};
use tt_guest::tar::{Limits, Packer, Unpacker};

/// Bytes of an archive that are sent at once.
const CHUNK_BYTES: usize = 64 << 10;
/// Chunks that wait to be sent; a full queue holds the packer back.
const CHUNK_QUEUE: usize = 4;
/// Most files and directories taken from a guest: it may make up names without end.
const ENTRIES_MAX: u64 = 10_000_000;

/// Arguments of `tt cp`.
#[derive(Args, Debug)]
pub struct CpArgs {
    /// What to copy: a path of this machine, or ENV/VM:PATH
    #[arg(value_name = "SRC")]
    from: CopyEnd,
    /// Where to: a path of this machine, or ENV/VM:PATH
    #[arg(value_name = "DST")]
    to: CopyEnd,
}

/// Copies.
///
/// # Errors
/// If either side can not be read or written, or the stream between them breaks. What was complete stays.
pub async fn run(context: &Context, args: CpArgs) -> Result<Exit, CliError> {
    let bytes = match (args.from, args.to) {
        (CopyEnd::Local(from), CopyEnd::Guest { target, path }) => {
            copy_in(context, &from, &target, path).await?
        }
        (CopyEnd::Guest { target, path }, CopyEnd::Local(to)) => {
            copy_out(context, &target, path, &to).await?
        }
        (from, _) => {
            let both = matches!(from, CopyEnd::Guest { .. });
            let problem =
                if both { "both paths are in guests" } else { "neither path is in a guest" };
            let remedy = "write exactly one of them as ENV/VM:PATH";
            return Err(CliError::Use { problem: problem.into(), remedy: remedy.into() });
        }
    };
    if context.output.json {
        let result = serde_json::json!({ "archive_bytes": bytes });
        context.output.result(&result, String::new)?;
    }
    Ok(Exit::DONE)
}

/// Copies into a guest; returns how many bytes went over.
async fn copy_in(
    context: &Context,
    from: &Path,
    target: &VmTarget,
    path: String,
) -> Result<u64, CliError> {
    let failed = failed_at(from);
    let mut packer = block_in_place(|| Packer::new(from)).map_err(&failed)?;
    let stream =
        context.client.open(&target.env, &target.vm, &Open::CopyIn { path, mode: None }).await?;
    let (sender, receiver) = stream.split();
    let (queue, chunks) = mpsc::channel(CHUNK_QUEUE);
    let packing = tokio::task::spawn_blocking(move || pack(&mut packer, &queue));
    // Unless the whole archive was sent, the guest is not told that it ended: half a copy must not pass for all of it.
    let sending = async {
        let sent = send(sender, chunks).await;
        match packing.await {
            Ok(Ok(())) => Ok(sent),
            Ok(Err(error)) => Err(failed(error)),
            Err(_) => Ok(sent),
        }
    };
    let mut sending = std::pin::pin!(sending);
    let mut ending = std::pin::pin!(end(receiver));
    tokio::select! {
        // The guest may refuse before all is sent.
        ended = &mut ending => {
            ended?;
            sending.await
        }
        sent = &mut sending => {
            let sent = sent?;
            ending.await?;
            Ok(sent)
        }
    }
}

/// What goes from the packer to the sender.
enum Chunk {
    Bytes(Vec<u8>),
    /// The archive is complete.
    End,
}

fn pack(packer: &mut Packer, queue: &mpsc::Sender<Chunk>) -> Result<(), tt_guest::Error> {
    loop {
        let mut bytes = vec![0; CHUNK_BYTES];
        let count = packer.fill(&mut bytes)?;
        bytes.truncate(count);
        let chunk = if count == 0 { Chunk::End } else { Chunk::Bytes(bytes) };
        // Without a sender the copy has ended already, and the receiver tells why.
        if queue.blocking_send(chunk).is_err() || count == 0 {
            return Ok(());
        }
    }
}

/// Sends what is packed and keeps the stream until the packer is done. A loss is told by the receiver.
async fn send(mut sender: StreamSender, mut chunks: mpsc::Receiver<Chunk>) -> u64 {
    let mut bytes = 0;
    while let Some(chunk) = chunks.recv().await {
        let message = match chunk {
            Chunk::Bytes(chunk) => {
                bytes += chunk.len() as u64;
                ToGuest::Data(chunk)
            }
            Chunk::End => ToGuest::Eof,
        };
        if sender.send(message).await.is_err() {
            break;
        }
    }
    bytes
}

/// Waits for the end of a copy into a guest.
async fn end(mut receiver: StreamReceiver) -> Result<(), CliError> {
    while let Some(message) = receiver.receive().await? {
        match message {
            FromGuest::Exited { .. } => return Ok(()),
            FromGuest::Failed { code, why } => return Err(CliError::Guest { code, why }),
            _ => {}
        }
    }
    Ok(())
}

/// Copies out of a guest; returns how many bytes came over.
async fn copy_out(
    context: &Context,
    target: &VmTarget,
    path: String,
    to: &Path,
) -> Result<u64, CliError> {
    let view = context.client.vm(&target.env, &target.vm).await?;
    let resource = &view.vm.resource;
    let limits = Limits {
        bytes: (u64::from(resource.disk_size) + u64::from(resource.mem_size)) << 20,
        entries: ENTRIES_MAX,
    };
    let failed = failed_at(to);
    // The name is this side's choice, whatever the archive says; `/` has none of its own.
    let name = Path::new(&path).file_name().and_then(|name| name.to_str()).unwrap_or("root");
    let mut unpacker = Unpacker::new(to, Some(name), None, limits).map_err(&failed)?;
    let open = Open::CopyOut { path: path.clone() };
    let mut stream: Stream = context.client.open(&target.env, &target.vm, &open).await?;
    let mut bytes = 0;
    while let Some(message) = stream.receive().await? {
        match message {
            FromGuest::Stdout(chunk) => {
                bytes += chunk.len() as u64;
                block_in_place(|| unpacker.push(&chunk)).map_err(&failed)?;
            }
            FromGuest::Exited { .. } => break,
            FromGuest::Failed { code, why } => return Err(CliError::Guest { code, why }),
            FromGuest::Started { .. } | FromGuest::Stderr(_) => {}
        }
    }
    unpacker.finish().map_err(&failed)?;
    Ok(bytes)
}

fn failed_at(path: &Path) -> impl Fn(tt_guest::Error) -> CliError {
    let path = path.display().to_string();
    move |source| CliError::Copy { path: path.clone(), source }
}
