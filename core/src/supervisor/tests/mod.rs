//! The plan without a driver: by table, and in a model world.

mod table;
mod world;
