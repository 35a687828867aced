//! The slots of a plan: those of workers, numbered from 0 on, and those of spares, numbered from [`FIRST_SPARE`] on.

use super::event::FIRST_SPARE;
use std::ops::{Index, IndexMut};

pub(super) struct Slots<T> {
    pub(super) workers: Vec<T>,
    pub(super) spares: Vec<T>,
}

impl<T> Slots<T> {
    /// Without workers, and with so many spares.
    pub(super) fn new(spares: usize, slot: impl Fn(u32) -> T) -> Slots<T> {
        Slots { workers: Vec::new(), spares: (FIRST_SPARE..).take(spares).map(slot).collect() }
    }

    /// Workers first.
    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        self.workers.iter().chain(&self.spares)
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.workers.iter_mut().chain(&mut self.spares)
    }

    pub(super) fn get(&self, number: u32) -> Option<&T> {
        match number.checked_sub(FIRST_SPARE) {
            Some(spare) => self.spares.get(spare as usize),
            None => self.workers.get(number as usize),
        }
    }

    pub(super) fn get_mut(&mut self, number: u32) -> Option<&mut T> {
        match number.checked_sub(FIRST_SPARE) {
            Some(spare) => self.spares.get_mut(spare as usize),
            None => self.workers.get_mut(number as usize),
        }
    }
}

impl<T> Index<u32> for Slots<T> {
    type Output = T;

    fn index(&self, number: u32) -> &T {
        self.get(number).expect("the slot is there")
    }
}

impl<T> IndexMut<u32> for Slots<T> {
    fn index_mut(&mut self, number: u32) -> &mut T {
        self.get_mut(number).expect("the slot is there")
    }
}
