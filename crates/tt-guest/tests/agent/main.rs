//! The agent from outside: as a process of this machine, and as the first process of a real guest.

mod archive;
mod boot;
mod client;
mod copy;
mod exec;
mod session;
