//! The Docker driver on a real dockerd: needs root, Docker and the agent.

#[cfg(test)]
mod crash;
#[cfg(test)]
mod machine;
#[cfg(test)]
mod rig;
#[cfg(test)]
#[path = "../common/table.rs"]
mod table;
