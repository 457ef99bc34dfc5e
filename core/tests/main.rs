//! The decisions, tried over a model of a program and of devices. One program for all of them: the engine over the model is
//! compiled once.
#![cfg(not(loom))]

mod advice;
mod device_failures;
mod fail_each_step;
mod files;
mod install;
mod model;
mod oracle;
mod overlay;
mod overlay_oracle;
mod overlay_races;
mod races;
mod range_fault;
mod regions;
mod samples;
mod slots;
mod strays;
mod stress;
mod under_way;
