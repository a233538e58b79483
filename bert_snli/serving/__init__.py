"""The web page of `bert-snli serve`: what is answered, how it is shown, how it is served, and the same as a Space."""
