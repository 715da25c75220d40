"""The public :class:`gemlet.Model` and the classes that it is made of."""
