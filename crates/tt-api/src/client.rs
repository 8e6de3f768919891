//! The client: one method for each route, over the daemon's unix socket.
//!
//! Every call makes its own connection and repeats nothing by itself. It decides nothing: what the
//! daemon answers is handed on.

mod disk;
mod events;
mod http;
mod members;
mod stream;

pub use disk::DiskStream;
pub use events::{EnvEvent, EnvEvents};
pub use stream::{Console, ConsoleReceiver, ConsoleSender, Stream, StreamReceiver, StreamSender};

use crate::access::DiskForm;
use crate::error::ClientError;
use crate::views::{
    EnvList, EnvView, ExtendRequest, HostList, HostView, StopRequest, TemplateList, TemplateView,
    VerifyReport, VersionView, VmList, VmView,
};
use http::{Body, segment};
use hyper::Method;
use serde::de::DeserializeOwned;
use std::path::PathBuf;
use tt_guest::session::Open;
use tt_model::{EnvSpec, PushSpec, StopMode, TemplateSpec, Traffic};

/// A client of one daemon. Cheap to clone; every call makes its own connection.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
}

/// Every method answers [`ClientError::Problem`] with what the daemon refused and why, and one of
/// the other variants if it could not be asked. Names are sent as they are: the daemon checks them.
impl Client {
    /// A client of the daemon that listens at `socket`. Connects to nothing yet.
    pub fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    /// What answers.
    pub async fn version(&self) -> Result<VersionView, ClientError> {
        self.get("/v1/version").await
    }

    /// The OpenAPI document of the daemon.
    pub async fn openapi(&self) -> Result<serde_json::Value, ClientError> {
        self.get("/v1/openapi.json").await
    }

    /// All Envs, oldest first.
    pub async fn envs(&self) -> Result<EnvList, ClientError> {
        self.get("/v1/envs").await
    }

    /// An Env by its name.
    pub async fn env(&self, env: &str) -> Result<EnvView, ClientError> {
        self.get(&env_path(env)).await
    }

    /// Plans a new Env; [`Client::events`] tells when it is ready. With the same `key` it may be
    /// sent again whatever happened to the first one: the present Env is answered.
    ///
    /// `key` is 1 to 64 letters, digits and hyphens that nobody used for another request.
    pub async fn create_env(
        &self,
        name: &str,
        key: &str,
        spec: &EnvSpec,
    ) -> Result<EnvView, ClientError> {
        let body = Body::json(spec)?.with_key(key);
        self.call(Method::PUT, &env_path(name), body).await
    }

    /// Sends an Env on its way out. Doing it again while it goes is fine.
    pub async fn destroy_env(&self, env: &str) -> Result<EnvView, ClientError> {
        self.call(Method::DELETE, &env_path(env), Body::none()).await
    }

    /// Stops every member of an Env; without a mode each is suspended if its engine can, else shut
    /// down.
    pub async fn stop_env(
        &self,
        env: &str,
        mode: Option<StopMode>,
    ) -> Result<EnvView, ClientError> {
        let body = Body::json(&StopRequest { mode })?;
        self.call(Method::POST, &format!("{}/stop", env_path(env)), body).await
    }

    /// Starts every member of an Env.
    pub async fn start_env(&self, env: &str) -> Result<EnvView, ClientError> {
        self.call(Method::POST, &format!("{}/start", env_path(env)), Body::none()).await
    }

    /// Moves the end of an Env `life_time` seconds away.
    pub async fn extend_env(&self, env: &str, life_time: u64) -> Result<EnvView, ClientError> {
        let body = Body::json(&ExtendRequest { life_time })?;
        self.call(Method::POST, &format!("{}/extend", env_path(env)), body).await
    }

    /// Follows an Env: its present state at once, then every change.
    pub async fn events(&self, env: &str) -> Result<EnvEvents, ClientError> {
        EnvEvents::open(self, &format!("{}/events", env_path(env))).await
    }

    /// All Vms, oldest first.
    pub async fn vms(&self) -> Result<VmList, ClientError> {
        self.get("/v1/vms").await
    }

    /// A Vm by its Env's name and its own.
    pub async fn vm(&self, env: &str, vm: &str) -> Result<VmView, ClientError> {
        self.get(&vm_path(env, vm)).await
    }

    /// Stops one member of an Env; without a mode it is suspended if its engine can, else shut down.
    pub async fn stop_vm(
        &self,
        env: &str,
        vm: &str,
        mode: Option<StopMode>,
    ) -> Result<VmView, ClientError> {
        let body = Body::json(&StopRequest { mode })?;
        self.call(Method::POST, &format!("{}/stop", vm_path(env, vm)), body).await
    }

    /// Starts one member of an Env.
    pub async fn start_vm(&self, env: &str, vm: &str) -> Result<VmView, ClientError> {
        self.call(Method::POST, &format!("{}/start", vm_path(env, vm)), Body::none()).await
    }

    /// The last `tail` bytes of a Vm's console log; a screenful or two if `None`.
    pub async fn log(
        &self,
        env: &str,
        vm: &str,
        tail: Option<u64>,
    ) -> Result<Vec<u8>, ClientError> {
        let query = tail.map_or(String::new(), |tail| format!("?tail={tail}"));
        let path = format!("{}/log{query}", vm_path(env, vm));
        self.bytes(Method::GET, &path, Body::none()).await
    }

    /// What was seen of a Vm's traffic.
    pub async fn traffic(&self, env: &str, vm: &str) -> Result<Traffic, ClientError> {
        self.call(Method::GET, &format!("{}/traffic", vm_path(env, vm)), Body::none()).await
    }

    /// Opens a stream in a guest: runs a program, or copies. Dropping it cancels what runs on it.
    pub async fn open(&self, env: &str, vm: &str, open: &Open) -> Result<Stream, ClientError> {
        Stream::open(self, &format!("{}/streams", vm_path(env, vm)), open).await
    }

    /// Connects to a TCP port of a guest from inside its Env's network. Dropping it hangs up.
    ///
    /// # Errors
    /// `ERR_TT_AGENT` if nothing answers there.
    pub async fn connect(&self, env: &str, vm: &str, port: u16) -> Result<Console, ClientError> {
        Console::open(self, &format!("{}/ports/{port}", vm_path(env, vm))).await
    }

    /// Attaches to a Vm's serial console. Dropping it detaches.
    pub async fn console(&self, env: &str, vm: &str) -> Result<Console, ClientError> {
        Console::open(self, &format!("{}/console", vm_path(env, vm))).await
    }

    /// All templates, by name.
    pub async fn templates(&self) -> Result<TemplateList, ClientError> {
        self.get("/v1/templates").await
    }

    /// A template by its name.
    pub async fn template(&self, name: &str) -> Result<TemplateView, ClientError> {
        self.get(&template_path(name)).await
    }

    /// Asks for a template; one that is ready is answered as it is.
    pub async fn make_template(&self, spec: &TemplateSpec) -> Result<TemplateView, ClientError> {
        self.call(Method::POST, "/v1/templates", Body::json(spec)?).await
    }

    /// The disk of a template, as it is sent.
    pub async fn disk(&self, name: &str, form: DiskForm) -> Result<DiskStream, ClientError> {
        let path = format!("/v1/disks/{}?format={}", template_segments(name), form.name());
        DiskStream::open(self, &path, form).await
    }

    /// Removes a template that no Vm was made from.
    pub async fn remove_template(&self, name: &str) -> Result<TemplateView, ClientError> {
        self.call(Method::DELETE, &template_path(name), Body::none()).await
    }

    /// Asks for a template to be pushed to a registry.
    pub async fn push_template(&self, spec: &PushSpec) -> Result<TemplateView, ClientError> {
        self.call(Method::POST, "/v1/pushes", Body::json(spec)?).await
    }

    /// Ends the push of a template, if it is under way.
    pub async fn stop_push(&self, name: &str) -> Result<TemplateView, ClientError> {
        let path = template_path(name).replacen("/templates/", "/pushes/", 1);
        self.call(Method::DELETE, &path, Body::none()).await
    }

    /// All hosts.
    pub async fn hosts(&self) -> Result<HostList, ClientError> {
        self.get("/v1/hosts").await
    }

    /// A host by its name.
    pub async fn host(&self, name: &str) -> Result<HostView, ClientError> {
        self.get(&format!("/v1/hosts/{}", segment(name))).await
    }

    /// Compares the daemon's host with the records.
    pub async fn verify(&self) -> Result<VerifyReport, ClientError> {
        self.get("/v1/verify").await
    }

    /// Makes the daemon's host what the records say, and answers what is left.
    pub async fn repair(&self) -> Result<VerifyReport, ClientError> {
        self.call(Method::POST, "/v1/verify", Body::none()).await
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.call(Method::GET, path, Body::none()).await
    }
}

fn env_path(env: &str) -> String {
    format!("/v1/envs/{}", segment(env))
}

fn vm_path(env: &str, vm: &str) -> String {
    format!("/v1/envs/{}/vms/{}", segment(env), segment(vm))
}

/// A template's name holds slashes: its parts are segments of their own.
fn template_path(name: &str) -> String {
    format!("/v1/templates/{}", template_segments(name))
}

fn template_segments(name: &str) -> String {
    let parts: Vec<_> = name.split('/').map(segment).collect();
    parts.join("/")
}
