//! The real driver on this machine's kernel, as root. Each test has network and mount namespaces of
//! its own and a temporary run directory, so tests run side by side and leave nothing behind, even
//! when they fail.

// Clippy lets helpers unwrap only in what says that it is for tests.
#[cfg(test)]
mod changes;
#[cfg(test)]
mod domains;
#[cfg(test)]
mod flat;
#[cfg(test)]
mod hostile;
#[cfg(test)]
mod isolation;
#[cfg(test)]
mod lab;
#[cfg(test)]
mod leases;
#[cfg(test)]
mod life;
#[cfg(test)]
mod mend;
#[cfg(test)]
mod moves;
#[cfg(test)]
mod names;
#[cfg(test)]
mod plug;
#[cfg(test)]
mod reach;
#[cfg(test)]
mod resolver;
#[cfg(test)]
mod rules;
#[cfg(test)]
mod sites;
#[cfg(test)]
mod six;
