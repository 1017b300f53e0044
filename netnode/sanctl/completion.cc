#include "netnode/sanctl/completion.h"

#include <vector>

namespace sanproxy::sanctl {
namespace {

std::string words_of(const CLI::App& app) {
  std::string out;
  for (const CLI::App* sub : app.get_subcommands([](const CLI::App*) { return true; })) {
    out += sub->get_name() + " ";
  }
  for (const CLI::App* from : {&app, app.get_parent()}) {
    if (from == nullptr) continue;
    for (const CLI::Option* option : from->get_options()) {
      for (const std::string& name : option->get_lnames()) out += "--" + name + " ";
    }
  }
  if (!out.empty()) out.pop_back();
  return out;
}

// "config set" -> what may follow.
void add_cases(const CLI::App& app, const std::string& path, std::string& out) {
  out += "    \"" + path + "\") words=\"" + words_of(app) + "\" ;;\n";
  for (const CLI::App* sub : app.get_subcommands([](const CLI::App*) { return true; })) {
    add_cases(*sub, path.empty() ? sub->get_name() : path + " " + sub->get_name(), out);
  }
}

void add_names(const CLI::App& app, std::string& out) {
  for (const CLI::App* sub : app.get_subcommands([](const CLI::App*) { return true; })) {
    out += sub->get_name() + "|";
    add_names(*sub, out);
  }
}

}  // namespace

std::string completion_script(const CLI::App& app, const std::string& shell) {
  std::string cases, names;
  add_cases(app, "", cases);
  add_names(app, names);
  if (!names.empty()) names.pop_back();
  std::string out = "# sanctl completion " + shell + "\n";
  if (shell == "zsh") out += "autoload -U +X bashcompinit && bashcompinit\n";
  out +=
      "_sanctl() {\n"
      "  local word path=\"\" words=\"\"\n"
      "  for word in \"${COMP_WORDS[@]:1:COMP_CWORD-1}\"; do\n"
      "    case \"$word\" in\n"
      "      " +
      names +
      ") path=\"${path:+$path }$word\" ;;\n"
      "    esac\n"
      "  done\n"
      "  case \"$path\" in\n" +
      cases +
      "  esac\n"
      "  COMPREPLY=($(compgen -W \"$words\" -- \"${COMP_WORDS[COMP_CWORD]}\"))\n"
      "}\n"
      "complete -o default -F _sanctl sanctl\n";
  return out;
}

}  // namespace sanproxy::sanctl
