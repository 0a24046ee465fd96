//! The things of the world and their words.

/// An enum whose variants are numbered in order and named by one word or phrase.
macro_rules! words {
    ($(#[$about:meta])* $name:ident, $count:literal: $($(#[$each:meta])* $variant:ident = $word:literal),+ $(,)?) => {
        $(#[$about])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum $name {
            $(
                #[doc = concat!("`", $word, "`")]
                $(#[$each])*
                $variant,
            )+
        }

        impl $name {
            /// Every value, in the order of [`Self::index`].
            pub const ALL: [Self; $count] = [$(Self::$variant),+];

            /// The word or phrase that questions and answers use.
            pub fn word(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)+
                }
            }

            /// The place in [`Self::ALL`].
            pub fn index(self) -> usize {
                self as usize
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                formatter.write_str(self.word())
            }
        }
    };
}
pub(crate) use words;

words! {
    /// What stands behind the objects of a scene.
    Background, 4: Day = "day", Night = "night", Desert = "desert", Forest = "forest"
}

words! {
    /// The colour of an object.
    Colour, 8:
    Red = "red", Green = "green", Blue = "blue", Yellow = "yellow",
    Purple = "purple", Orange = "orange", Pink = "pink", White = "white",
}

impl Colour {
    /// Red, green and blue, 0 to 255, without jitter.
    pub fn rgb(self) -> [u8; 3] {
        match self {
            Self::Red => [220, 30, 30],
            Self::Green => [40, 190, 60],
            Self::Blue => [40, 80, 230],
            Self::Yellow => [245, 225, 40],
            Self::Purple => [140, 50, 180],
            Self::Orange => [245, 140, 20],
            Self::Pink => [250, 150, 200],
            Self::White => [246, 246, 246],
        }
    }
}

words! {
    /// The outline of an object.
    Shape, 6:
    Circle = "circle", Square = "square", Triangle = "triangle", Star = "star", Cross = "cross", Ring = "ring",
}

words! {
    /// The size of an object that does not change its size.
    Size, 2: Small = "small", Large = "large"
}

impl Size {
    /// The radius in sides of the picture, without jitter.
    pub fn radius(self) -> f64 {
        match self {
            Self::Small => 0.10,
            Self::Large => 0.15,
        }
    }
}

words! {
    /// How an object moves during its scene.
    Motion, 7:
    Still = "stays still", Right = "moves right", Left = "moves left", Up = "moves up", Down = "moves down",
    Grows = "grows", Shrinks = "shrinks",
}

impl Motion {
    /// The verb phrase: "stays still", "moves right", ….
    pub fn phrase(self) -> &'static str {
        self.word()
    }

    /// Whether the object travels along a row or a column.
    pub fn travels(self) -> bool {
        matches!(self, Self::Right | Self::Left | Self::Up | Self::Down)
    }
}

words! {
    /// The nine positions, in reading order: `index() = row * 3 + column`.
    Cell, 9:
    TopLeft = "top left", TopCenter = "top center", TopRight = "top right",
    MiddleLeft = "middle left", Center = "center", MiddleRight = "middle right",
    BottomLeft = "bottom left", BottomCenter = "bottom center", BottomRight = "bottom right",
}

words! {
    /// What a subtitle can state once in a long video.
    FactKind, 6: Code = "code", Name = "name", City = "city", Day = "day", Key = "key", Prize = "prize"
}

impl FactKind {
    /// The six values that the fact can have.
    pub fn values(self) -> [&'static str; 6] {
        match self {
            Self::Code => ["seven", "three", "nine", "four", "five", "two"],
            Self::Name => ["anna", "peter", "maria", "john", "lucy", "tom"],
            Self::City => ["paris", "rome", "london", "tokyo", "berlin", "madrid"],
            Self::Day => ["monday", "friday", "sunday", "tuesday", "saturday", "thursday"],
            Self::Key => ["gold", "silver", "iron", "glass", "wood", "stone"],
            Self::Prize => ["cake", "book", "bike", "boat", "lamp", "hat"],
        }
    }
}

words! {
    /// A word that the speaker says once, while one object is alone on the screen.
    Cue, 8:
    Danger = "danger", Hello = "hello", Look = "look", Stop = "stop",
    Wonder = "wonder", Magic = "magic", Hurry = "hurry", Silence = "silence",
}

/// A number from zero to eight as a word. Larger numbers do not occur and read as "eight".
pub fn number(value: usize) -> &'static str {
    const NUMBERS: [&str; 9] = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight"];
    NUMBERS[value.min(8)]
}

/// A colour with a shape: what tells the objects of a scene apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Pair {
    /// The colour.
    pub colour: Colour,
    /// The shape.
    pub shape: Shape,
}

impl Pair {
    /// The pairs that no training video shows and no training question names.
    pub const NEVER_TRAINED: [Self; 6] = [
        Self { colour: Colour::Red, shape: Shape::Star },
        Self { colour: Colour::Green, shape: Shape::Cross },
        Self { colour: Colour::Blue, shape: Shape::Ring },
        Self { colour: Colour::Yellow, shape: Shape::Square },
        Self { colour: Colour::Purple, shape: Shape::Circle },
        Self { colour: Colour::Orange, shape: Shape::Triangle },
    ];

    /// Whether this is one of [`Self::NEVER_TRAINED`].
    pub fn is_never_trained(self) -> bool {
        Self::NEVER_TRAINED.contains(&self)
    }

    /// "red star".
    pub fn name(self) -> String {
        format!("{} {}", self.colour, self.shape)
    }

    /// "a red star", "an orange circle".
    pub fn with_article(self) -> String {
        format!("{} {}", article(self.colour.word()), self.name())
    }
}

/// "an" before a vowel, else "a".
pub(crate) fn article(word: &str) -> &'static str {
    if word.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" }
}
