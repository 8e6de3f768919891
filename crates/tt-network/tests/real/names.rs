//! The resolver, asked by guests.
