//! Tests of both ends over a real unix socket. One program, so that it is linked once.

#[cfg(test)]
mod common;
#[cfg(test)]
mod create;
#[cfg(test)]
mod disks;
#[cfg(test)]
mod events;
#[cfg(test)]
mod images;
#[cfg(test)]
mod many;
#[cfg(test)]
mod members;
#[cfg(test)]
mod openapi;
#[cfg(test)]
mod publish;
#[cfg(test)]
mod pushes;
#[cfg(test)]
mod routes;
#[cfg(test)]
mod slow;
#[cfg(test)]
mod snapshots;
#[cfg(test)]
mod streams;
#[cfg(test)]
mod wrong;
