//! Node.js face.
