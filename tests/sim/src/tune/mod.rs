//! Tuners of congestion control beside each other: the controller's own, published ones and fixed settings, on the same
//! scenarios with the same seeds.

pub mod acc;
pub mod case;
pub mod compare;
pub mod paraleon;
pub mod render;
pub mod routing;
pub mod stats;
pub mod weir;

pub use compare::{Options, TuningResults, tuning_results};
pub use render::markdown;
