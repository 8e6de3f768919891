//! tt-image
