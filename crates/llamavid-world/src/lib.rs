//! The toy world that the embedded model is trained on: scenes, their pictures, and questions with answers.
