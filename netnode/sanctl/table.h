// Table: rows of text in columns that line up.
//
// Role: pure: a header, rows, and the text of it. Thread: values.
#pragma once

#include <algorithm>
#include <string>
#include <vector>

namespace sanproxy::sanctl {

class Table {
 public:
  explicit Table(std::vector<std::string> header) { rows_.push_back(std::move(header)); }
  // As many cells as the header has. What could move the cursor is replaced.
  void add(std::vector<std::string> row) {
    for (std::string& cell : row) {
      unsigned char before = 0;
      for (char& c : cell) {
        const auto byte = static_cast<unsigned char>(c);
        const bool c1 = before == 0xc2 && byte >= 0x80 && byte < 0xa0;  // in UTF-8
        if (byte < 0x20 || byte == 0x7f || c1) c = '?';
        before = byte;
      }
      if (cell.empty()) cell = "-";
    }
    rows_.push_back(std::move(row));
  }
  std::string text() const {
    std::vector<std::size_t> widths(rows_.front().size(), 0);
    for (const auto& row : rows_) {
      for (std::size_t i = 0; i < row.size() && i < widths.size(); ++i) {
        widths[i] = std::max(widths[i], row[i].size());
      }
    }
    std::string out;
    for (const auto& row : rows_) {
      std::string line;
      for (std::size_t i = 0; i < row.size() && i < widths.size(); ++i) {
        line += row[i] + std::string(widths[i] - row[i].size() + 2, ' ');
      }
      line.erase(line.find_last_not_of(' ') + 1);
      out += line + "\n";
    }
    return out;
  }

 private:
  std::vector<std::vector<std::string>> rows_;
};

}  // namespace sanproxy::sanctl
