//! The real driver on this machine's kernel, as root. Each test has network and mount namespaces of
//! its own and a temporary run directory, so tests run side by side and leave nothing behind, even
//! when they fail.

mod frame;
mod isolation;
mod lab;
mod life;
mod measure;
mod names;
mod reach;
