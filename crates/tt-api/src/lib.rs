//! tt-api
