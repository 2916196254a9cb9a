//! Doubly linked lists of numbered places, newest first, without memory of their own.

/// What a place is linked to in one chain.
#[derive(Clone, Copy)]
pub struct Links {
    newer: Option<u16>,
    older: Option<u16>,
}

impl Links {
    pub const NONE: Self = Self { newer: None, older: None };
}

/// Its two ends; the links of its places are the caller's, so that one array serves all chains of a kind.
#[derive(Clone, Copy)]
pub struct Chain {
    newest: Option<u16>,
    oldest: Option<u16>,
}

impl Chain {
    pub const EMPTY: Self = Self { newest: None, oldest: None };

    pub fn newest(self) -> Option<u16> {
        self.newest
    }

    pub fn oldest(self) -> Option<u16> {
        self.oldest
    }

    /// Puts a place that is in no chain before the others.
    pub fn push(&mut self, links: &mut [Links], place: u16) {
        links[usize::from(place)] = Links { newer: None, older: self.newest };
        match self.newest {
            Some(newest) => links[usize::from(newest)].newer = Some(place),
            None => self.oldest = Some(place),
        }
        self.newest = Some(place);
    }

    /// Takes out a place of this chain.
    pub fn remove(&mut self, links: &mut [Links], place: u16) {
        let Links { newer, older } = links[usize::from(place)];
        match newer {
            Some(newer) => links[usize::from(newer)].older = older,
            None => self.newest = older,
        }
        match older {
            Some(older) => links[usize::from(older)].newer = newer,
            None => self.oldest = newer,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_leave_from_both_ends_and_from_the_middle() {
        let (mut links, mut chain) = ([Links::NONE; 5], Chain::EMPTY);
        (0..5).for_each(|place| chain.push(&mut links, place));
        chain.remove(&mut links, 2);
        chain.remove(&mut links, 4);
        chain.remove(&mut links, 0);
        assert_eq!((chain.newest(), chain.oldest()), (Some(3), Some(1)));
        chain.push(&mut links, 2);
        let mut left = Vec::new();
        while let Some(oldest) = chain.oldest() {
            chain.remove(&mut links, oldest);
            left.push(oldest);
        }
        assert_eq!(left, [1, 3, 2]);
        assert_eq!(chain.newest(), None);
    }
}
