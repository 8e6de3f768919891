//! A list of arguments that grows.

use serde_json::Value;
use std::ffi::OsString;

#[derive(Default)]
pub(super) struct Args(pub Vec<OsString>);

impl Args {
    pub fn flag(&mut self, flag: &str) -> &mut Self {
        self.0.push(flag.into());
        self
    }

    pub fn pair(&mut self, option: &str, value: impl Into<OsString>) {
        self.flag(option).0.push(value.into());
    }

    pub fn device(&mut self, device: Value) {
        self.pair("-device", device.to_string());
    }
}
