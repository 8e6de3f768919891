//! What becomes of images, right ones and wrong ones, in a scratch directory.

mod arbitrary;
mod documents;
mod hostile;
mod layers;
mod registry;
mod wrong_documents;
mod wrong_registry;
