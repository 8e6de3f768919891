//! What becomes of images, right ones and wrong ones, in a scratch directory.

mod arbitrary;
mod documents;
mod hostile;
mod layers;
