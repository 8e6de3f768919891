//! The Docker driver on a real dockerd: needs root, Docker and the agent.

#[cfg(test)]
mod machine;
#[cfg(test)]
mod rig;
