"""Errors, types, JSON files and tables; nothing here touches a device."""
