//! Joins what an engine needs of the network for its containers to the network plane.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use tt_engine::docker::Plug;
use tt_model::Vm;
use tt_network::{Network, NetworkError};

/// The network plane, as an engine for containers sees it.
#[derive(Debug)]
pub(super) struct Plugs(pub(super) Arc<dyn Network>);

impl Plug for Plugs {
    fn plug(&self, vm: &Vm, into: BorrowedFd<'_>) -> io::Result<()> {
        self.0.plug(vm, into).map_err(told)
    }

    fn unplug(&self, vm: &Vm) -> io::Result<()> {
        self.0.unplug(vm).map_err(told)
    }
}

/// Where nothing is started, nothing is joined to a network.
#[derive(Debug)]
pub(super) struct Unplugged;

impl Plug for Unplugged {
    fn plug(&self, _: &Vm, _: BorrowedFd<'_>) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn unplug(&self, _: &Vm) -> io::Result<()> {
        Ok(())
    }
}

fn told(error: NetworkError) -> io::Error {
    io::Error::other(super::chain(&error))
}
