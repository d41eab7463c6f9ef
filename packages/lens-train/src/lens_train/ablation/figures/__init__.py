"""The figures of a report on ablations, as PNG files that a page, a README and a slide can show."""
