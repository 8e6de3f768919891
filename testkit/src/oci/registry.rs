//! A registry on loopback (OCI distribution specification 1.1): what is pushed to it can be pulled from it. It remembers
//! what it was asked, and is as wrong as it is told to be.

mod answer;
mod store;

pub use answer::{Part, Trick};
pub use store::Asked;

use super::Image;
use crate::{Must, Space};
use answer::serve;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use store::Store;

/// Who is let in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Door {
    /// Everybody.
    #[default]
    Open,
    /// Who brings these credentials, Base64 of `USER:PASSWORD`, in each request.
    Basic(String),
    /// Who brings a token, which everybody gets who asks for one, or who brings these credentials.
    Token(Option<String>),
}

/// It ends when it is dropped.
#[derive(Debug)]
pub struct Registry {
    address: SocketAddr,
    store: Arc<Mutex<Store>>,
    end: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Default for Registry {
    fn default() -> Self {
        Self::new()
    }
}

impl Registry {
    /// On this test's own loopback.
    pub fn new() -> Self {
        Self::at(TcpListener::bind("127.0.0.1:0").must("listen"))
    }

    /// On the loopback of a namespace.
    pub fn within(space: &Space) -> Self {
        Self::at(space.run(|| TcpListener::bind("127.0.0.1:0")).must("listen"))
    }

    fn at(listener: TcpListener) -> Self {
        let address = listener.local_addr().must("address of a listener");
        listener.set_nonblocking(true).must("listen without blocking");
        let store = Arc::new(Mutex::new(Store::new(address)));
        let (end, ended) = tokio::sync::oneshot::channel();
        let served = store.clone();
        let thread = std::thread::spawn(move || serve(listener, &served, ended));
        Self { address, store, end: Some(end), thread: Some(thread) }
    }

    /// `HOST:PORT`.
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    /// A reference to what is in it: `NAME[:TAG][@DIGEST]`.
    pub fn reference(&self, name: &str) -> String {
        format!("{}/{name}", self.address)
    }

    /// Lets others in than everybody.
    pub fn door(&self, door: Door) {
        self.store().door = door;
    }

    /// From now on, that part of its answers is wrong in this way.
    pub fn trick(&self, part: Part, trick: Trick) {
        self.store().tricks.push((part, trick, usize::MAX));
    }

    /// The same, for so many answers.
    pub fn trick_times(&self, part: Part, trick: Trick, times: usize) {
        self.store().tricks.push((part, trick, times));
    }

    /// From now on it is right, and has been asked nothing.
    pub fn calm(&self) {
        let mut store = self.store();
        store.tricks.clear();
        store.asked.clear();
    }

    /// What it was asked, in this order.
    pub fn asked(&self) -> Vec<Asked> {
        self.store().asked.clone()
    }

    /// Puts an image there, under a tag.
    pub fn put_image(&self, name: &str, tag: &str, image: &Image) {
        let (manifest, blobs) = image.manifest();
        blobs.iter().for_each(|blob| self.put_blob(name, blob));
        self.put_manifest(name, tag, "application/vnd.oci.image.manifest.v1+json", &manifest);
    }

    /// Puts any content there.
    pub fn put_blob(&self, name: &str, blob: &[u8]) {
        self.store().put_blob(name, blob.to_vec());
    }

    /// Puts any document there, under a tag and under its digest.
    pub fn put_manifest(&self, name: &str, tag: &str, media_type: &str, manifest: &[u8]) {
        self.store().put_manifest(name, tag, media_type, manifest.to_vec());
    }

    /// The document of that tag or digest.
    pub fn manifest(&self, name: &str, version: &str) -> Vec<u8> {
        self.store().manifest(name, version).must("a manifest").1
    }

    /// The content of that digest.
    pub fn blob(&self, name: &str, digest: &str) -> Vec<u8> {
        self.store().blob(name, digest).must("a blob")
    }

    fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.end = None;
        if let Some(thread) = self.thread.take() {
            // Its panic was printed.
            let _ = thread.join();
        }
    }
}
