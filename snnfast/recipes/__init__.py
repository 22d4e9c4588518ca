"""The recipes that come with snnfast: ``snnfast train NAME`` finds NAME.toml here."""
