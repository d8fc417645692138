"""The human study: pairs of generated images are shown to raters, who say which is better; and what their votes say."""
