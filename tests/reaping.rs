//! See the index in main.rs.
