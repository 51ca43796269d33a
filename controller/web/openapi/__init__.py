"""The API document, generated from the route table and the types of bodies, and a page that shows it."""
