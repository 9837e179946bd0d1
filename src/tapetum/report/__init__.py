"""What people see: stamps and curves as pictures, tables as files, one self-contained HTML page."""
