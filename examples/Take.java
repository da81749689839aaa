import java.io.IOException;
import java.nio.file.FileSystemException;
import java.nio.file.Files;
import java.nio.file.NoSuchFileException;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;

/**
 * Takes a lock, works under it, renews it meanwhile, and releases it.
 *
 * <pre>java Take.java MOUNT [NAME]</pre>
 */
public class Take {
    public static void main(String[] args) throws InterruptedException {
        if (args.length < 1 || args.length > 2) {
            fail("usage: java Take.java MOUNT [NAME]");
        }
        try {
            run(Path.of(args[0]), args.length > 1 ? args[1] : "example");
        } catch (NoSuchFileException e) {
            fail(e.getFile() + ": no such file: not a lockfs mount, or the lock is no longer ours");
        } catch (FileSystemException e) {
            fail(e.getFile() + ": " + e.getReason());
        } catch (IOException e) {
            fail(e.toString());
        }
    }

    static void run(Path mount, String name) throws IOException, InterruptedException {
        // The open waits in line, this thread with it. Java opens again by itself when a signal interrupts it.
        String token = Files.readString(mount.resolve("take/" + name + "+30s")).strip();
        Path lock = mount.resolve("tlock/" + name + "@" + token); // exists only as long as this very lock is held
        System.out.printf("took %s, token %s%n", name, token);
        for (int part = 1; part <= 3; part++) {
            Thread.sleep(100); // in place of work: each part must take less than the timeout
            if (!Files.isDirectory(lock)) {
                fail(name + " is no longer ours: stopping before harm is done");
            }
            Files.writeString(lock.resolve("timeout"), "30s\n", StandardOpenOption.WRITE); // renew
            System.out.printf("part %d done, renewed%n", part);
        }
        Files.delete(lock); // by token: never somebody else's
        System.out.printf("released %s%n", name);
    }

    static void fail(String why) {
        System.err.println("Take: " + why);
        System.exit(1);
    }
}
