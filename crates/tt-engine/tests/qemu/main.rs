//! The QEMU driver on real QEMU: needs root, cgroups and `/dev/net/tun`.

#[cfg(test)]
mod crash;
#[cfg(test)]
mod exec;
#[cfg(test)]
mod firmware;
#[cfg(test)]
mod guest;
#[cfg(test)]
#[path = "../common/host.rs"]
mod host;
#[cfg(test)]
#[path = "../common/layers.rs"]
mod layers;
#[cfg(test)]
mod machine;
#[cfg(test)]
mod memory;
#[cfg(test)]
mod merges;
#[cfg(test)]
mod monitor;
#[cfg(test)]
#[path = "../common/pvh.rs"]
mod pvh;
#[cfg(test)]
mod rig;
#[cfg(test)]
#[path = "../common/sample.rs"]
mod sample;
#[cfg(test)]
#[path = "../common/table.rs"]
mod table;
