//! Tuners of congestion control beside each other: the controller's own, published ones and fixed settings, on the same
//! scenarios with the same seeds.

pub mod acc;
pub mod case;
pub mod compare;
pub mod figures;
pub mod oracle;
pub mod paraleon;
pub mod render;
pub mod routing;
pub mod stats;
pub mod weir;

pub use compare::{Options, tuning_results};
pub use figures::TuningResults;
pub use render::markdown;
