//! What the API needs of the host beside the store: streams, looks, the clock and the dice.
//!
//! Nothing here changes a record: what should be is committed to the store, and the host makes it
//! so.

use crate::views::VerifyReport;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::future::Future;
use std::io::Read;
use std::pin::Pin;
use tokio::sync::mpsc;
use tt_guest::session::{FromGuest, Open, ToGuest};
use tt_model::{ErrorCode, Protocol, Refusal, Snapshot, Traffic, Vm, VmId, VmTemplate};
use utoipa::ToSchema;

/// A future that can be sent between threads.
pub type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Messages that each direction of a stream holds before its sender waits: enough to keep both
/// sides busy, few enough that a slow reader holds back the guest and not the daemon's memory.
pub const STREAM_QUEUE: usize = 8;
/// Most bytes in one message of a stream.
pub const STREAM_MESSAGE_BYTES_MAX: usize = 64 << 10;

/// What the API needs of the host beside the store: streams, looks and repairs. None of it changes a
/// record.
///
/// `console_log`, `traffic`, `frozen`, `disk` and `verify` may block: the API calls them on a thread of their own.
pub trait HostAccess: Send + Sync + 'static {
    /// The ports that something on this host listens on, whoever it is.
    fn listening_ports(&self) -> BTreeSet<(Protocol, u16)>;

    /// The daemon's clock, in seconds since the epoch.
    fn now_unix_secs(&self) -> u64;

    /// That many bytes that nobody can guess.
    fn random(&self, bytes: usize) -> Vec<u8>;

    /// Opens a stream in a guest of this host.
    ///
    /// # Errors
    /// `ERR_TT_AGENT` if the agent does not answer, `ERR_TT_BUSY` if it has too many streams. What
    /// the guest itself refuses arrives as [`FromGuest::Failed`].
    fn open(&self, vm: VmId, open: Open) -> BoxFuture<Result<GuestStream, Refusal>>;

    /// Attaches to a machine's serial console.
    ///
    /// # Errors
    /// `ERR_TT_STATE` if there is no machine, `ERR_TT_UNSUPPORTED` if it has no console.
    fn console(&self, vm: VmId) -> BoxFuture<Result<ByteStream, Refusal>>;

    /// Connects to a TCP port of a guest from inside its Env's network, whatever is published. Takes some seconds at most.
    ///
    /// # Errors
    /// `ERR_TT_AGENT` if nothing answers there.
    fn connect(&self, vm: &Vm, port: u16) -> BoxFuture<Result<ByteStream, Refusal>>;

    /// The last `tail_bytes` of a machine's console log; fewer if there are fewer.
    ///
    /// # Errors
    /// `ERR_TT_HOST` if the log can not be read. A log that does not exist yet is empty.
    fn console_log(&self, vm: VmId, tail_bytes: u64) -> Result<Vec<u8>, Refusal>;

    /// What was seen of its traffic.
    ///
    /// # Errors
    /// `ERR_TT_STATE` if it has no network now, `ERR_TT_HOST` if the host can not be asked.
    fn traffic(&self, vm: &Vm) -> Result<Traffic, Refusal>;

    /// The Vm as the meta of one of its snapshots has it, after checking that the meta is whole.
    ///
    /// # Errors
    /// `ERR_TT_META_RESTORE_CACHE` if it can not be read or is not what was written.
    fn frozen(&self, vm: &Vm, snapshot: &Snapshot) -> Result<Vm, Refusal>;

    /// Opens the disk of a template to send it.
    ///
    /// # Errors
    /// `ERR_TT_TEMPLATE` for one that has no disk, or whose disk can not be read; always on a host without templates.
    fn disk(&self, template: &VmTemplate, form: DiskForm) -> Result<Disk, Refusal> {
        let what = format!("{} disk of template {}", form.name(), template.name);
        let problem = "this host keeps no templates";
        Err(Refusal::new(ErrorCode::Template, what, problem, "ask the host that has it"))
    }

    /// Compares the host with the records. With `repair` it also clears what no record knows and
    /// makes what a record misses, at once and not after the grace time; what is reported is what
    /// is left then. Without it nothing is changed.
    ///
    /// # Errors
    /// If the host or the store can not be looked at.
    fn verify(&self, repair: bool) -> Result<VerifyReport, Refusal>;
}

/// How a template's disk is sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum DiskForm {
    /// Byte for byte, holes as zeros.
    #[default]
    Raw,
    /// A qcow2 image that needs no other file.
    Qcow2,
    /// Without holes: pieces of 8 bytes that say where, 4 bytes that say how much, both little endian, and that much data.
    /// The last piece has the length 0 and the disk's size as its place.
    Sparse,
}

impl DiskForm {
    /// As in a query.
    pub fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
            Self::Sparse => "sparse",
        }
    }
}

/// A disk that is sent.
pub struct Disk {
    /// Length of the stream, where it is known.
    pub bytes: Option<u64>,
    /// The stream. Reading may block.
    pub content: Box<dyn Read + Send>,
}

/// An open stream in a guest. Dropping `from` cancels it; dropping `to` says that no more comes.
#[derive(Debug)]
pub struct GuestStream {
    /// To the guest; holds at most [`STREAM_QUEUE`] messages.
    pub to: mpsc::Sender<ToGuest>,
    /// From the guest; `Exited` or `Failed` comes last. Ends without one if the host loses it.
    pub from: mpsc::Receiver<FromGuest>,
}

/// An attached console or a connection: raw bytes. Dropping it detaches, or hangs up.
#[derive(Debug)]
pub struct ByteStream {
    /// To the guest.
    pub to: mpsc::Sender<Vec<u8>>,
    /// From the guest. Ends when the machine does, or the connection.
    pub from: mpsc::Receiver<Vec<u8>>,
}
