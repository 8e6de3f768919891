//! The Firecracker driver, on a stand-in everywhere and on Firecracker where `TT_FIRECRACKER` names it: needs root, cgroups and
//! `/dev/net/tun`.

#[cfg(test)]
mod crash;
#[cfg(test)]
mod guest;
#[cfg(test)]
#[path = "../common/host.rs"]
mod host;
#[cfg(test)]
mod machine;
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
