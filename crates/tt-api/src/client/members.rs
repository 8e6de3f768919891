//! Calls about single members, snapshots and kept images.

use super::http::{Body, segment};
use super::{Client, env_path, vm_path};
use crate::error::ClientError;
use crate::views::{EnvView, ImageList, SnapshotList, SnapshotView, VmList, VmView};
use hyper::Method;
use tt_model::{KeptImage, SnapshotSpec, VmId, VmSpec, VmUpdate};

impl Client {
    /// Adds members to an Env and answers them; [`Client::events`] tells when they are ready. With
    /// the same `key` it may be sent again whatever happened to the first one.
    ///
    /// `key` is 1 to 64 letters, digits and hyphens that nobody used for another request.
    pub async fn add_vm(&self, env: &str, key: &str, spec: &VmSpec) -> Result<VmList, ClientError> {
        let body = Body::json(spec)?.with_key(key);
        self.call(Method::POST, &format!("{}/vms", env_path(env)), body).await
    }

    /// Changes a member; the answer says whether a part of it waits for its next start.
    pub async fn update_vm(
        &self,
        env: &str,
        vm: &str,
        update: &VmUpdate,
    ) -> Result<VmView, ClientError> {
        self.call(Method::PATCH, &vm_path(env, vm), Body::json(update)?).await
    }

    /// Sends a member on its way out. Doing it again while it goes is fine.
    pub async fn remove_vm(&self, env: &str, vm: &str) -> Result<VmView, ClientError> {
        self.call(Method::DELETE, &vm_path(env, vm), Body::none()).await
    }

    /// Denies, or allows, all members of an Env to open connections to the outside.
    pub async fn set_env_outgoing(&self, env: &str, deny: bool) -> Result<EnvView, ClientError> {
        let path = format!("{}/{}", env_path(env), outgoing(deny));
        self.call(Method::POST, &path, Body::none()).await
    }

    /// Denies, or allows, one member to open connections to the outside.
    pub async fn set_vm_outgoing(
        &self,
        env: &str,
        vm: &str,
        deny: bool,
    ) -> Result<VmView, ClientError> {
        let path = format!("{}/{}", vm_path(env, vm), outgoing(deny));
        self.call(Method::POST, &path, Body::none()).await
    }

    /// The snapshots of one member, or of all of an Env, by name.
    pub async fn snapshots(
        &self,
        env: &str,
        vm: Option<&str>,
    ) -> Result<SnapshotList, ClientError> {
        self.get(&snapshots_path(env, vm)).await
    }

    /// Asks for a snapshot of one member, or of all of an Env at one point in time;
    /// [`Client::events`] tells when it is taken.
    pub async fn create_snapshot(
        &self,
        env: &str,
        vm: Option<&str>,
        spec: &SnapshotSpec,
    ) -> Result<EnvView, ClientError> {
        self.call(Method::POST, &snapshots_path(env, vm), Body::json(spec)?).await
    }

    /// What [`Client::create_snapshot`] would keep of each; nothing is changed.
    pub async fn preview_snapshot(
        &self,
        env: &str,
        vm: Option<&str>,
        spec: &SnapshotSpec,
    ) -> Result<SnapshotView, ClientError> {
        let path = format!("{}?dry_run=true", snapshots_path(env, vm));
        self.call(Method::POST, &path, Body::json(spec)?).await
    }

    /// Brings one member, or all of an Env, back to a snapshot and lets them run.
    pub async fn apply_snapshot(
        &self,
        env: &str,
        vm: Option<&str>,
        name: &str,
    ) -> Result<EnvView, ClientError> {
        let path = format!("{}/apply", snapshot_path(env, vm, name));
        self.call(Method::POST, &path, Body::none()).await
    }

    /// Removes a snapshot of one member, or of all members of an Env that have it.
    pub async fn remove_snapshot(
        &self,
        env: &str,
        vm: Option<&str>,
        name: &str,
    ) -> Result<EnvView, ClientError> {
        self.call(Method::DELETE, &snapshot_path(env, vm, name), Body::none()).await
    }

    /// All kept images.
    pub async fn images(&self) -> Result<ImageList, ClientError> {
        self.get("/v1/images").await
    }

    /// Removes a kept image that nothing lies on. Doing it again while it goes is fine.
    pub async fn remove_image(&self, id: VmId) -> Result<KeptImage, ClientError> {
        self.call(Method::DELETE, &format!("/v1/images/{id}"), Body::none()).await
    }
}

fn outgoing(deny: bool) -> &'static str {
    if deny { "deny-outgoing" } else { "allow-outgoing" }
}

fn snapshots_path(env: &str, vm: Option<&str>) -> String {
    let of = vm.map_or_else(|| env_path(env), |vm| vm_path(env, vm));
    format!("{of}/snapshots")
}

fn snapshot_path(env: &str, vm: Option<&str>, name: &str) -> String {
    format!("{}/{}", snapshots_path(env, vm), segment(name))
}
