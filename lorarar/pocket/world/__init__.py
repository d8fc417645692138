"""The drawn world: artwork, styles, vocabulary and the pictures made of them."""
